"""The config of a text encoder that takes images: the configs of both encoders, and how image tokens are inserted."""

from transformers import AutoConfig, PretrainedConfig


def _own(config, default):
    """The config of one encoder as an instance of its class."""
    if config is None or isinstance(config, PretrainedConfig):
        return config
    values = dict(config)
    return AutoConfig.for_model(values.pop("model_type", default), **values)


class JasperVLConfig(PretrainedConfig):
    """``vector_dim``: the vectors' dimension, one of ``vector_dims``. ``is_text_encoder``: omit the vision part."""

    model_type = "jasper_vl"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012 # pyright: ignore

    def __init__(
        self,
        text_config=None,
        vision_config=None,
        is_text_encoder=False,
        vector_dim=None,
        vector_dims=(),
        vector_dropout_p=0.0,
        num_img_tokens=300,
        img_start_token="<|jasper_img_start|>",
        img_token="<|jasper_img_token|>",
        img_end_token="<|jasper_img_end|>",
        img_start_token_id=None,
        img_token_id=None,
        img_end_token_id=None,
        projector="none",
        pooling_mode="mean",
        normalize=True,
        **kwargs,
    ):
        self.text_config = _own(text_config, "qwen2")
        self.vision_config = _own(vision_config, "siglip_vision_model")
        self.is_text_encoder = is_text_encoder
        self.vector_dims = sorted(vector_dims, reverse=True)
        self.vector_dim = vector_dim or (self.vector_dims[0] if self.vector_dims else None)
        self.vector_dropout_p = vector_dropout_p
        self.num_img_tokens = num_img_tokens
        self.img_start_token, self.img_token, self.img_end_token = img_start_token, img_token, img_end_token
        self.img_start_token_id, self.img_token_id = img_start_token_id, img_token_id
        self.img_end_token_id = img_end_token_id
        self.projector = projector
        self.pooling_mode = pooling_mode
        self.normalize = normalize
        super().__init__(**kwargs)
        if self.vector_dims and self.vector_dim not in self.vector_dims:
            raise ValueError(f"vector_dim is {self.vector_dim}; this model has {self.vector_dims}")
