"""Every vision family against transformers: states, weights both ways, other image sizes, the last layers' gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.encoders.weights import load_params, save, state_dict
from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.encoder import vision_from_config, vision_from_folder
from jasper_jax.vision.resampling import adaptive_pool
from tests.encoders.stacks import split_layers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 30, "patch_size": 7}
CASES = {
    "siglip_vision_model": {**SMALL, "intermediate_size": 48},
    "clip_vision_model": {**SMALL, "intermediate_size": 48},
    "dinov2": {**SMALL, "mlp_ratio": 2, "layerscale_value": 0.3},
}
TOLERANCE = 1e-5


def tiny(model_type, **changes):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**CASES[model_type], **changes})
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():  # nothing at its first value: zeros and ones would hide a mistake
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def states_of(model, images, **options):
    with torch.no_grad():
        pixels = torch.tensor(images).permute(0, 3, 1, 2)
        return model(pixel_values=pixels, **options).last_hidden_state.numpy()


def images(size, count=2):
    return np.random.default_rng(1).normal(size=(count, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("model_type", CASES)
def test_states_equal_transformers(model_type, tmp_path):
    model = tiny(model_type)
    model.save_pretrained(tmp_path)
    encoder = vision_from_folder(tmp_path)
    params = load_params(tmp_path, encoder)
    x = images(30)
    ours = np.asarray(encoder.apply(params, x))
    assert ours.shape == (2, encoder.num_tokens, 32)
    np.testing.assert_allclose(ours, states_of(model, x), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("size", [21, 42])
@pytest.mark.parametrize("model_type", CASES)
def test_another_image_size_interpolates_positions(model_type, size, tmp_path):
    model = tiny(model_type)
    model.save_pretrained(tmp_path)
    encoder = vision_from_folder(tmp_path, image_size=size)
    params = load_params(tmp_path, encoder)
    x = images(size)
    options = {} if model_type == "dinov2" else {"interpolate_pos_encoding": True}
    theirs = states_of(model, x, **options)
    assert encoder.num_tokens == theirs.shape[1]
    np.testing.assert_allclose(np.asarray(encoder.apply(params, x)), theirs, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("model_type", CASES)
def test_weights_go_both_ways(model_type, tmp_path):
    model = tiny(model_type)
    model.save_pretrained(tmp_path / "theirs")
    encoder = vision_from_folder(tmp_path / "theirs")
    params = load_params(tmp_path / "theirs", encoder)
    save(params, encoder, tmp_path / "ours")
    back = load_params(tmp_path / "ours", vision_from_folder(tmp_path / "ours"))
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), params, back))
    again, report = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["unexpected_keys"]
    # What states do not depend on: SigLIP's head, CLIP's norm of the class token, DINOv2's mask token.
    assert all(
        name.startswith(("head.", "post_layernorm.", "embeddings.mask_token")) for name in report["missing_keys"]
    )
    x = images(30)
    np.testing.assert_allclose(states_of(again.eval(), x), states_of(model, x), atol=1e-6)


def test_a_whole_siglip_gives_its_vision_tower(tmp_path):
    vision, text = CASES["siglip_vision_model"], {**SMALL, "vocab_size": 50, "intermediate_size": 48}
    config = transformers.SiglipConfig(vision_config=vision, text_config=text)
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    encoder = vision_from_folder(tmp_path)
    x = images(30)
    ours = np.asarray(encoder.apply(load_params(tmp_path, encoder), x))
    np.testing.assert_allclose(ours, states_of(model.vision_model, x), atol=TOLERANCE, rtol=TOLERANCE)


def test_the_old_names_of_a_checkpoint_are_read(tmp_path):
    from safetensors.numpy import save_file

    model = tiny("siglip_vision_model")
    model.save_pretrained(tmp_path)
    encoder = vision_from_folder(tmp_path)
    params = load_params(tmp_path, encoder)
    tensors = {f"vision_model.{name}": np.ascontiguousarray(x) for name, x in state_dict(params, encoder).items()}
    save_file(tensors, tmp_path / "model.safetensors")  # as transformers 4 named them
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), params, load_params(tmp_path, encoder)))


@pytest.mark.parametrize("model_type", CASES)
def test_the_last_layers_alone_have_a_gradient(model_type):
    encoder = vision_from_config({"model_type": model_type, **CASES[model_type]})
    params = split_layers(encoder.init(jax.random.key(0)), 1)
    x = jnp.asarray(images(30))

    def loss(last):
        layers = (params["layers"][0], last)
        return (encoder.apply({**params, "layers": layers}, x, training=True) ** 2).sum()

    grads = jax.jit(jax.grad(loss))(params["layers"][1])
    assert all(
        np.isfinite(g).all() and np.abs(g).max() > 0
        for name, g in jax.tree.leaves_with_path(grads)
        if "key" not in str(name)
    )


@pytest.mark.parametrize(
    "shape", [(5, 3, 2, 2), (9, 8, 4, 12), (2, 3, 7, 5), (7, 4, 7, 9), (6, 6, 6, 6), (729, 1152, 300, 1536)]
)
def test_the_pooler_is_pytorchs(shape):
    T, C, n, D = shape
    x = np.random.default_rng(0).normal(size=(1, T, C)).astype(np.float32)
    theirs = torch.nn.AdaptiveAvgPool2d((n, D))(torch.tensor(x)).numpy()
    np.testing.assert_allclose(np.asarray(adaptive_pool(jnp.asarray(x), n, D)), theirs, atol=1e-6)


def test_the_pooler_is_pytorchs_for_every_pair_of_small_sizes():
    x = np.random.default_rng(0).normal(size=(1, 9, 3)).astype(np.float32)
    for T in range(1, 10):
        for n in range(1, 13):
            theirs = torch.nn.AdaptiveAvgPool2d((n, 3))(torch.tensor(x[:, :T])).numpy()
            np.testing.assert_allclose(np.asarray(adaptive_pool(jnp.asarray(x[:, :T]), n, 3)), theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "vit"}, "not an implemented vision encoder"),
        ({"model_type": "siglip2"}, "not an implemented vision encoder"),
        ({"model_type": "dinov2", "use_swiglu_ffn": True}, "use_swiglu_ffn"),
        ({"model_type": "dinov2", "image_size": [28, 14]}, "square"),
        ({"model_type": "clip_vision_model", "num_channels": 1}, "num_channels"),
    ],
)
def test_what_is_not_implemented_is_named(config, says):
    with pytest.raises(UserError, match=says):
        vision_from_config(config)


def test_a_size_its_patches_do_not_divide_is_refused():
    with pytest.raises(UserError, match="14 or 21"):
        vision_from_config({"model_type": "dinov2", **CASES["dinov2"]}, image_size=20)
