"""The sentence-transformers module of the model: texts, images and mixtures of both, in any order in one call.

An input is a text, an image (a Pillow image, a ``Path``, the bytes of a file), one item, or a list of items: ``{"type":
"text", "content": ...}``, ``{"type": "image" | "image_path" | "image_bytes", "content": ...}``. The key ``content`` may
also be the type, or ``image``.
"""

import functools
import inspect
import io
import shutil
from pathlib import Path

import torch
from PIL import Image, ImageOps
from sentence_transformers.base.modules import InputModule
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

IMAGES = ("image", "image_path", "image_bytes")


def check_first(inference, module, inputs, **options):
    """The model's inference after a check of all inputs: it sorts them, so later errors could not name an input."""
    module.read(inputs, options.get("prompt"))
    return inference(inputs, **options)


def upright_rgb(image):
    """An image as RGB: rotated by its EXIF data, transparency over white, 16-bit grey scaled to 8 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda level: level / 257 + 0.5).convert("L")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert("RGB")


def opened(source):
    """A Pillow image, a path or the bytes of a file -> RGB."""
    if isinstance(source, Image.Image):
        return upright_rgb(source)
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return upright_rgb(image)


def middle(image, most=32):
    """The image, or the middle of a very elongated one, which scaling by its short edge would make huge."""
    width, height = image.size
    longest = most * min(width, height)
    left, top = (width - min(width, longest)) // 2, (height - min(height, longest)) // 2
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


class JasperVLModule(InputModule):
    """Inputs -> vectors. Texts longer than ``max_seq_length`` are truncated; ValueError if that truncates an image."""

    config_file_name = "sentence_bert_config.json"
    config_keys = ["max_seq_length"]  # noqa: RUF012
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, model, tokenizer, processor, max_seq_length=None):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.processor = processor
        self.max_seq_length = max_seq_length
        config = model.config
        self.marks = (config.img_start_token, config.img_token, config.img_end_token)
        self.image = self.marks[0] + self.marks[1] * config.num_img_tokens + self.marks[2]

    @classmethod
    def load(cls, model_name_or_path, subfolder="", token=None, cache_folder=None, revision=None,
             local_files_only=False, trust_remote_code=False, model_kwargs=None, processor_kwargs=None,
             config_kwargs=None, backend="torch", **kwargs):  # fmt: skip
        """``config_kwargs``: ``vector_dim``, ``is_text_encoder``."""
        if backend != "torch":
            raise ValueError(f"backend is {backend!r}; this model runs in torch only")
        hub = {"token": token, "revision": revision, "local_files_only": local_files_only}
        settings = cls.load_config(model_name_or_path, subfolder=subfolder, cache_folder=cache_folder, **hub)
        hub |= {"subfolder": subfolder, "cache_dir": cache_folder, "trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(model_name_or_path, **hub, **(config_kwargs or {}))
        model = AutoModel.from_pretrained(model_name_or_path, config=config, **hub, **(model_kwargs or {}))
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **hub, **(processor_kwargs or {}))
        processor = None
        if not config.is_text_encoder:
            processor = AutoImageProcessor.from_pretrained(model_name_or_path, backend="pil", **hub)
        return cls(model, tokenizer, processor, settings.get("max_seq_length"))

    @property
    def modalities(self):
        return ["text"] if self.processor is None else ["text", "image", "message"]

    def get_embedding_dimension(self):
        return self.model.config.vector_dim

    def on_model_ready(self, model):
        if hasattr(model, "_inference"):
            model._inference = functools.partial(check_first, model._inference, self)

    def items(self, value, where):
        """An input as a list of texts and unopened images."""
        out = []
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, (str, Image.Image, Path, bytes)):
                out.append(item)
                continue
            kind = item.get("type") if isinstance(item, dict) else type(item).__name__
            if not isinstance(item, dict) or kind not in ("text", *IMAGES):
                raise ValueError(f"{where} has an item of type {kind!r}; expected text, {', '.join(IMAGES)}")
            content = next((item[key] for key in ("content", kind, "image") if key in item), None)
            if not isinstance(content, str if kind == "text" else (Image.Image, str, Path, bytes)):
                raise ValueError(f"{where} has a {kind} that is a {type(content).__name__}")
            out.append(Path(content) if kind != "text" and isinstance(content, str) else content)
        if not out:
            raise ValueError(f"{where} is empty")
        return out

    def read(self, inputs, prompt=None):
        """Token ids and unopened images of each input. ValueError names an input that cannot be used."""
        texts, images = [], []
        for i, value in enumerate(inputs):
            items = self.items(value, f"inputs[{i}]")
            own = [item for item in items if not isinstance(item, str)]
            if own and self.processor is None:
                raise ValueError(f"inputs[{i}] has an image, but the model was loaded with is_text_encoder")
            if len(items) > 1 and any(mark in item for item in items if isinstance(item, str) for mark in self.marks):
                raise ValueError(f"inputs[{i}]: its text has one of {', '.join(self.marks)}, which are for images")
            text = "".join(item if isinstance(item, str) else self.image for item in items)
            texts.append((prompt or "") + text if isinstance(items[0], str) else text)
            images.append(own)
        limit = {} if self.max_seq_length is None else {"truncation": True, "max_length": self.max_seq_length}
        rows = self.tokenizer(texts, **limit)["input_ids"]
        config = self.model.config
        for i, (row, own) in enumerate(zip(rows, images)):
            if own and row.count(config.img_end_token_id) != len(own):
                raise ValueError(
                    f"inputs[{i}]: an image does not fit max_seq_length {self.max_seq_length} (an image takes"
                    f" {config.num_img_tokens + 2} tokens); put it first, or shorten the input"
                )
        return rows, images

    def preprocess(self, inputs, prompt=None, **kwargs):
        rows, images = self.read(inputs, prompt)
        length, padding = max(map(len, rows)), self.tokenizer.pad_token_id or 0
        features = {
            "input_ids": torch.tensor([row + [padding] * (length - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        }
        short = getattr(getattr(self.processor, "size", None), "shortest_edge", None) is not None
        if pictures := [middle(opened(image)) if short else opened(image) for own in images for image in own]:
            with_images = torch.tensor([bool(own) for own in images])[:, None]
            features["image_mask"] = (features["input_ids"] == self.model.config.img_token_id) & with_images
            features["pixel_values"] = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return features

    def forward(self, features, **kwargs):
        names = ("input_ids", "attention_mask", "pixel_values", "image_mask")
        out = self.model(**{name: features[name] for name in names if name in features})
        return {**features, "token_embeddings": out.last_hidden_state, "sentence_embedding": out.pooler_output}

    def save(self, output_path, *args, safe_serialization=True, **kwargs):
        self.model.save_pretrained(output_path)
        self.save_tokenizer(output_path)
        self.save_config(output_path)
        if self.processor is not None:
            self.processor.save_pretrained(output_path)
        for part in (type(self), type(self.model), type(self.model.config)):
            shutil.copy(inspect.getfile(part), output_path)
