"""A text encoder that takes images (arXiv 2412.19048): the tokens of an image are inserted among those of words."""

import inspect

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_jasper_vl import JasperVLConfig


class Tower(nn.Module):
    """A vision encoder under the prefix of its checkpoints' tensors."""

    def __init__(self, encoder):
        super().__init__()
        self.vision_model = encoder

    def forward(self, *args, **kwargs):
        return self.vision_model(*args, **kwargs)


def text_model(config):
    """The text encoder of a config, without the layer that some apply to the first token."""
    parameters = inspect.signature(AutoModel._model_mapping[type(config)].__init__).parameters
    return AutoModel.from_config(config, **({"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}))


def vision_model(config):
    """The vision encoder of a config, without the layers that its token states do not pass through."""
    encoder = AutoModel.from_config(config)
    if config.model_type == "clip_vision_model":
        getattr(encoder, "vision_model", encoder).post_layernorm = nn.Identity()
    if config.model_type == "siglip_vision_model" and not hasattr(encoder, "vision_model"):
        return Tower(encoder)
    return encoder


def pool(states, mask, mode):
    """``[B, L, D]`` states, ``[B, L]`` mask with padding on the right -> ``[B, D]``."""
    keep = mask[..., None].to(states.dtype)
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    if mode == "max":
        return states.masked_fill(keep == 0, -torch.inf).amax(1)
    if mode == "weightedmean":
        keep = keep * torch.arange(1, states.shape[1] + 1, device=states.device)[:, None]
    total, count = (states * keep).sum(1), keep.sum(1)
    if mode in ("mean", "weightedmean"):
        return total / count
    if mode == "mean_sqrt_len_tokens":
        return total / count.sqrt()
    raise ValueError(f"pooling_mode {mode!r} is not implemented")


class JasperVL(PreTrainedModel):
    """Token ids, and the pixels of images among them -> ``pooler_output``, one vector per input."""

    config_class = JasperVLConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config):
        super().__init__(config)
        width = config.text_config.hidden_size
        modes = config.pooling_mode
        self.pooling_modes = [modes] if isinstance(modes, str) else list(modes)
        self.model = text_model(config.text_config)
        for dim in config.vector_dims:
            setattr(self, f"vector_linear_{dim}", nn.Linear(width * len(self.pooling_modes), dim))
        if config.is_text_encoder:
            self._keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^vision_projector\."]
        else:
            self.vision_model = vision_model(config.vision_config)
            if config.projector != "none":
                times = config.num_img_tokens if config.projector == "joint" else 1
                self.vision_projector = nn.Linear(times * config.vision_config.hidden_size, times * width)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def image_tokens(self, pixel_values):
        """``[N, 3, S, S]`` -> ``[N, n, D]``, the images' tokens."""
        vision = self.config.vision_config
        options = {}
        if vision.model_type != "dinov2" and pixel_values.shape[-1] != vision.image_size:
            options["interpolate_pos_encoding"] = True  # DINOv2 always interpolates
        pixel_values = pixel_values.to(next(self.vision_model.parameters()).dtype)
        states = self.vision_model(pixel_values=pixel_values, **options).last_hidden_state.float()
        projected = self.config.projector != "none"
        width = states.shape[-1] if projected else self.config.text_config.hidden_size
        tokens = F.adaptive_avg_pool2d(states[:, None], (self.config.num_img_tokens, width))[:, 0]
        if projected:
            weight, bias = self.vision_projector.weight.float(), self.vision_projector.bias.float()
            out = F.linear(tokens.reshape(len(tokens), -1, weight.shape[1]), weight, bias)
            tokens = out.reshape(len(tokens), self.config.num_img_tokens, -1)
        return tokens

    def forward(self, input_ids, attention_mask=None, pixel_values=None, image_mask=None, **kwargs):
        """``pixel_values``: all images of the batch, in the order of ``input_ids``. ``image_mask``: the positions of
        their tokens, by default every image token."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        inputs = {"input_ids": input_ids}
        if pixel_values is not None:
            if self.config.is_text_encoder:
                raise ValueError("this model was loaded with is_text_encoder, so it takes no images")
            tokens = self.image_tokens(pixel_values)
            at = input_ids == self.config.img_token_id if image_mask is None else image_mask
            if int(at.sum()) != tokens.shape[0] * tokens.shape[1]:
                raise ValueError(f"input_ids have {int(at.sum())} image tokens for {len(tokens)} images")
            words = self.get_input_embeddings()(input_ids)
            inputs = {"inputs_embeds": words.masked_scatter(at[..., None], tokens.to(words.dtype))}
        states = self.model(**inputs, attention_mask=attention_mask).last_hidden_state
        pooled = torch.cat([pool(states.float(), attention_mask, mode) for mode in self.pooling_modes], -1)
        pooled = F.dropout(pooled, self.config.vector_dropout_p, self.training)
        linear = getattr(self, f"vector_linear_{self.config.vector_dim}")
        vectors = F.linear(pooled, linear.weight.float(), linear.bias.float())
        if self.config.normalize:
            vectors = F.normalize(vectors, dim=-1)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=vectors)
