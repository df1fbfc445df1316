"""The sentence-transformers module of the model: texts, images and mixtures of both, in any order in one call.

An input is a text, an image (a Pillow image, the bytes of a file, a ``Path``), one item, or a list of items: ``{"type":
"text", "content": ...}``, ``{"type": "image" | "image_path" | "image_bytes", "content": ...}``. The key ``content`` may
also be the type, or ``image``. Paths are opened only in a folder that the caller names, since inputs may come from
strangers: ``SentenceTransformer(..., processor_kwargs={"image_root": FOLDER})``.
"""

import functools
import inspect
import io
import os
import shutil
import stat
import struct
from pathlib import Path

import torch
from PIL import Image, ImageOps
from sentence_transformers.base.modules import InputModule
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

IMAGES = ("image", "image_path", "image_bytes")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "QOI")
"""What is decoded: formats whose decoders run no other program."""
MAX_PIXELS = 64_000_000
MAX_BYTES = 1 << 28


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


def file_bytes(root, name):
    """The bytes of a file under ``root``. ValueError, the same whatever the path leads to: there is none to read."""
    try:
        path = (root / name).resolve()
        if path.is_relative_to(root.resolve()):
            with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and len(data := file.read(MAX_BYTES + 1)) <= MAX_BYTES:
                    return data
    except (OSError, ValueError, RuntimeError):
        pass
    raise ValueError(f"{str(name)!r} is no file under image_root that can be read, of at most {MAX_BYTES:,} bytes")


def opened(source, root=None):
    """A Pillow image, the bytes of a file, or a path under ``root`` -> RGB. ValueError: refused before decoding."""
    if isinstance(source, Image.Image):
        if getattr(source, "tile", None) and source.format not in (*FORMATS, "MPO", "DIB", "APNG"):
            raise ValueError(f"an image of the format {source.format}; the formats are {', '.join(FORMATS)}")
        return decoded(source)
    data = source if isinstance(source, bytes) else file_bytes(root, source)
    if len(data) > MAX_BYTES:
        raise ValueError(f"an image of more than {MAX_BYTES:,} bytes")
    Image.init()
    with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        return decoded(image)


def tile_pixels(file):
    """The pixels of a TIFF's tile, which libtiff unpacks whole however small the image is; 0 without tiles. Of a size
    that is there twice Pillow and libtiff read different ones: here the larger counts."""
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+")
    file.seek(struct.unpack(f"{order}Q" if big else f"{order}4xI", head[8:] if big else head[:8])[0])
    (entries,) = struct.unpack(f"{order}Q" if big else f"{order}H", file.read(8 if big else 2))
    sides = {322: 0, 323: 0}
    for _ in range(min(entries, 65_535)):
        tag, kind, value = struct.unpack(f"{order}HH8x8s" if big else f"{order}HH4x4s", file.read(20 if big else 12))
        if tag in sides:
            form = {1: "B", 3: "H", 4: "I", 16: "Q" if big else None}.get(kind)
            side = struct.unpack_from(f"{order}{form}", value)[0] if form else MAX_PIXELS + 1
            sides[tag] = max(sides[tag], side)
    return sides[322] * sides[323]


def decoded(image):
    """The image as RGB; ValueError: it has too many pixels."""
    if image.format == "TIFF" and getattr(image, "tile", None) and tile_pixels(image.fp) > MAX_PIXELS:
        raise ValueError(f"a TIFF with tiles of more than {MAX_PIXELS:,} pixels")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"an image of {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read")
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

    def __init__(self, model, tokenizer, processor, max_seq_length=None, image_root=None):
        super().__init__()
        self.image_root = Path(image_root) if image_root else None  # "" of an unset variable is no folder
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
        """``config_kwargs``: ``vector_dim``, ``is_text_encoder``. ``processor_kwargs``: ``image_root``, see above."""
        if backend != "torch":
            raise ValueError(f"backend is {backend!r}; this model runs in torch only")
        hub = {"token": token, "revision": revision, "local_files_only": local_files_only}
        settings = cls.load_config(model_name_or_path, subfolder=subfolder, cache_folder=cache_folder, **hub)
        hub |= {"subfolder": subfolder, "cache_dir": cache_folder, "trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(model_name_or_path, **hub, **(config_kwargs or {}))
        model = AutoModel.from_pretrained(model_name_or_path, config=config, **hub, **(model_kwargs or {}))
        own = dict(processor_kwargs or {})
        image_root = own.pop("image_root", None)
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **hub, **own)
        processor = None
        if not config.is_text_encoder:
            processor = AutoImageProcessor.from_pretrained(model_name_or_path, backend="pil", **hub)
        return cls(model, tokenizer, processor, settings.get("max_seq_length"), image_root)

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
            if self.image_root is None and any(isinstance(item, Path) for item in own):
                raise ValueError(
                    f"inputs[{i}] has the path of an image; paths are opened only in a folder that you name, with"
                    ' processor_kwargs={"image_root": FOLDER}; or give the bytes of the file, or a Pillow image'
                )
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
        if pixels := [self.pixels(image) for own in images for image in own]:
            with_images = torch.tensor([bool(own) for own in images])[:, None]
            features["image_mask"] = (features["input_ids"] == self.model.config.img_token_id) & with_images
            features["pixel_values"] = torch.cat(pixels)
        return features

    def pixels(self, image):
        """``[1, 3, S, S]`` of an image that is not opened yet: one at a time, since it may be as large as allowed."""
        picture = opened(image, self.image_root)
        if getattr(getattr(self.processor, "size", None), "shortest_edge", None) is not None:
            picture = middle(picture)
        return self.processor(images=[picture], return_tensors="pt")["pixel_values"]

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
