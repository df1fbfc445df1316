"""The model card: the student and its teachers, its scores, and how to load it at each dimension."""

from __future__ import annotations

import json
from collections.abc import Mapping

from huggingface_hub import ModelCard

from jasper_jax.encoders.quantization import RANGES
from jasper_jax.evaluation.evaluation import Evaluation
from jasper_jax.evaluation.precisions import CANDIDATES, precision_markdown
from jasper_jax.evaluation.tables import markdown_table
from jasper_jax.export.asymmetric import Documents, model_name, query_encoder_section
from jasper_jax.export.card_metadata import card_metadata, nested_dims
from jasper_jax.export.card_training import History, training_section
from jasper_jax.export.dimensions import dimensions_note
from jasper_jax.export.model import TrainedStudent
from jasper_jax.export.versions import least_versions
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.runtime.markdown import code_span, markdown_text

CITATION = """@misc{zhang2025jasperstelladistillationsota,
  title={Jasper and Stella: distillation of SOTA embedding models},
  author={Dun Zhang and Jiacheng Li and Ziyang Zeng and Fulong Wang},
  year={2025},
  eprint={2412.19048},
  archivePrefix={arXiv},
  primaryClass={cs.IR}
}"""


def model_card(
    recipe: Recipe,
    trained: TrainedStudent,
    evaluation: Evaluation | None,
    documents: Documents | None = None,
    history: History | None = None,
) -> str:
    """The README.md of an exported folder: no dates and no paths, and what others chose stands in code spans."""
    student, served = trained.student, trained.served
    history = history or History({}, (), (), ())
    teachers = ", ".join(map(model_name, recipe.teachers)) or "the model itself"
    metadata = card_metadata(recipe, trained, evaluation, [record.text for record in history.held_out])
    lines = [
        f"# {markdown_text(recipe.name)}",
        "",
        f"{'An embedding model of texts and images,' if student.vision_model else 'A text-embedding model of'}"
        f" {student.encoder.num_layers} layers and width {student.encoder.hidden_size},"
        f" distilled from {teachers} with the Jasper and Stella method (arXiv 2412.19048) by jasper_jax."
        f" Vectors of {', '.join(map(str, served))} dimensions; at most {student.max_length} tokens.",
        "",
        "## Use",
        "",
        *_use(trained),
        "In JAX:",
        "",
        "```python",
        "from jasper_jax import Embedder",
        "",
        f'Embedder.load("path/to/this/folder").encode(["..."], kind="query", dim={min(served)})',
        "```",
        "",
        "| dimension | made by |",
        "| ---: | --- |",
        *(
            f"| {dim} | {markdown_text(p.head)}{', its first components (nested)' if p.nested else ''} |"
            for dim, p in served.items()
        ),
        "",
        dimensions_note(trained, resolve_stages(recipe)),
        "",
        _prompts(student.prompts),
        "",
        *(query_encoder_section(recipe, trained.spaces, documents) if trained.spaces else []),
        "## Training",
        "",
        *training_section(recipe, trained, history),
        "",
    ]
    if evaluation and evaluation.rows:
        held_out = markdown_text(str(evaluation.metadata.get("held_out_texts", 0)))
        lines += [
            "## Scores",
            "",
            "±: half of the 95% bootstrap interval over queries; agreement is the Spearman correlation of pairwise"
            f" similarities with the teachers' on {held_out} texts not trained on.",
            "",
            markdown_table(evaluation),
        ]
    if evaluation and evaluation.precisions:
        lines += [
            "",
            "### Vectors in fewer bits",
            "",
            f"int8 with the ranges in `{RANGES}`; rescored: {CANDIDATES} times as many candidates by Hamming distance,"
            " then the float32 vectors of these.",
            "",
            precision_markdown(evaluation.precisions),
        ]
    lines += ["", "## Citation", "", "```bibtex", CITATION, "```"]
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"))


def _cutting(trained: TrainedStudent) -> str:
    if dims := nested_dims(trained):
        return (
            f"Vectors of {trained.default} dimensions may be cut to the first {', '.join(map(str, dims))} components."
        )
    return (
        f"Vectors of {trained.default} dimensions must not be cut (`truncate_dim`): every other dimension has a head of"
        " its own."
    )


def _prompts(prompts: Mapping[str, str]) -> str:
    if not any(prompts.values()):
        return "Texts need no prompt."
    said = "; ".join(
        f"{markdown_text(kind)} {code_span(json.dumps(text, ensure_ascii=False)) if text else 'none'}"
        for kind, text in prompts.items()
    )
    return f"Prompts: {said}."


def _versions(trained: TrainedStudent) -> str:
    least = least_versions(trained.student.encoder)
    return f"Least versions: {', '.join(f'{package} {version}' for package, version in least.items())}."


def _onnx(trained: TrainedStudent) -> list[str]:
    if not trained.settings.onnx:
        return []
    int8 = "" if trained.settings.onnx_int8_loss is None else "; `onnx/model_quantized.onnx` is its int8 form"
    images = ""
    if trained.student.vision_model is not None:
        images = (
            " `onnx/vision_model.onnx` gives those of images from `pixel_values`, as `image_embeds` and"
            " `image_embeds_{dim}`; mixtures of text and images need PyTorch."
        )
    return [
        "",
        "`onnx/model.onnx` gives these vectors in onnxruntime: `sentence_embedding` of"
        f" {trained.default} dimensions, `sentence_embedding_{{dim}}` of the others{int8}.{images}",
    ]


def _use(trained: TrainedStudent) -> list[str]:
    """How sentence-transformers loads the folder, and how it selects a dimension."""
    default, smallest = trained.default, min(trained.served)
    if trained.student.vision_model is None:
        return [
            "```python",
            "from sentence_transformers import SentenceTransformer",
            "",
            'model = SentenceTransformer("path/to/this/folder")',
            'queries = model.encode(["..."], prompt_name="query")',
            'passages = model.encode(["..."], prompt_name="passage")',
            "```",
            "",
            _versions(trained),
            "",
            _cutting(trained),
            f"`modules.json` names `2_Dense_{default}`. For another dimension write its `2_Dense_{{dim}}` there,"
            " or give Text Embeddings Inference `--dense-path 2_Dense_{dim}`.",
            *_onnx(trained),
        ]
    return [
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("path/to/this/folder", trust_remote_code=True)',
        'queries = model.encode(["..."], prompt_name="query")',
        "vectors = model.encode([",
        '    "a text",',
        "    image,  # Pillow's",
        '    [{"type": "text", "content": "a text, then"}, {"type": "image_bytes", "content": file.read_bytes()}],',
        "])",
        "```",
        "",
        f'Vectors have {default} dimensions; for others give `config_kwargs={{"vector_dim": {smallest}}}`. For texts'
        ' alone give `config_kwargs={"is_text_encoder": True}`, which omits the vision part. Paths of images are opened'
        ' only in a folder that you name: `processor_kwargs={"image_root": "images"}`.',
    ]
