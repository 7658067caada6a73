"""Published checkpoints at reduced sizes: layouts, reports, refusals, one copy in memory."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.models.feature_aggregation import ClipHeader
from neurodiff.models.feature_bridge import FeatureBridgeSize
from neurodiff.models.fmri_encoder import FMRIEncoderSize
from neurodiff.models.mind3d import BrainNetworks, ShapeGenerator
from neurodiff.models.published_sizes import (
    MinD3DSizes,
    expected_shapes,
    meta_modules,
    schedule_tables,
    sizes_of,
)
from neurodiff.models.shape_decoder import ShapeDecoderSize
from neurodiff.models.triplane_vq import TriplaneVQSize
from neurodiff.models.weights import (
    compare,
    fill,
    load_encoder,
    load_mind3d,
    load_pointnet,
    not_finite,
    open_checkpoint,
)

SMALL = MinD3DSizes(
    encoder=FMRIEncoderSize(
        image_size=64, patch_size=16, embed_dim=16, depth=2, num_heads=4, pred_out=24
    ),
    aggregated_tokens=5,
    bridge=FeatureBridgeSize(
        dim=32, depth=2, heads=2, dim_head=16, ff_mult=2, rotary_dim=16, null_tokens=7
    ),
    decoder=ShapeDecoderSize(
        vocab=40,
        width=16,
        heads=2,
        layers=3,
        positions=19,
        condition=32,
        sequence=16,
        adapter_every=2,
    ),
    tokenizer=TriplaneVQSize(
        hidden=8,
        plane_resolution=16,
        grid=4,
        vocab=40,
        width=16,
        unet_depth=2,
        start_filters=4,
        blocks=2,
    ),
)
HEADS = {"encoder_heads": 4, "decoder_heads": 2}


@pytest.fixture(scope="module")
def parts():
    """Random networks of the reduced size, on the CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        brain = BrainNetworks(
            SMALL.encoder, SMALL.bridge, aggregated_tokens=SMALL.aggregated_tokens
        )
        shapes = ShapeGenerator(SMALL.decoder, SMALL.tokenizer)
        header = ClipHeader(SMALL.encoder.pred_out, frames=6, width=SMALL.bridge.dim)
    return brain.eval(), shapes.eval(), header


@pytest.fixture(scope="module")
def released(parts):
    """Layout A: what a released file of these networks holds."""
    brain, shapes, _ = parts
    state = dict(brain.state_dict())
    for name, tensor in brain.prior_network.state_dict().items():
        state[f"diffusion_prior.net.{name}"] = tensor
    for name, tensor in schedule_tables(100).items():
        state[f"diffusion_prior.noise_scheduler.{name}"] = tensor
    state |= {f"shape_generator.{name}": tensor for name, tensor in shapes.state_dict().items()}
    return state


@pytest.fixture
def write(tmp_path):
    def save(content, name="weights.pt"):
        path = tmp_path / name
        torch.save(content, path)
        return path

    return save


# --- full size, without memory -----------------------------------------------------------------


def test_the_published_model_has_1226_names():
    shapes = expected_shapes(MinD3DSizes())
    prefixes = [name.split(".")[0] for name in shapes]
    counts = {prefix: prefixes.count(prefix) for prefix in dict.fromkeys(prefixes)}
    assert counts == {
        "fmri_encoder": 296,
        "fa_module": 8,
        "prior_network": 74,
        "diffusion_prior": 87,
        "shape_generator": 761,
    }
    assert sum(counts.values()) == 1226
    adapters = {name for name in shapes if ".adapter." in name}
    assert {name.split(".")[3] for name in adapters} == {*map(str, range(0, 32, 4))}
    assert sum(_numel(shapes[name]) for name in adapters) == 37_779_456
    assert shapes["shape_generator.transformer_model.pos_emb.weight"] == (1027, 3072)
    assert shapes["diffusion_prior.net.null_fmri_encodings"] == (1, 256, 512)


def test_published_parameters_module_by_module():
    parts = meta_modules(MinD3DSizes())
    generator = parts["shape_generator."]
    tokenizer = generator.vqvae_model
    counts = {
        "fmri_encoder": parts["fmri_encoder."],
        "fa_module": parts["fa_module."],
        "prior_network": parts["prior_network."],
        "transformer_model": generator.transformer_model,
        "quantizer": tokenizer.quantizer,
        "decoder": tokenizer.decoder,
        "encoder": tokenizer.encoder,
    }
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in counts.items()}
    assert counts == {
        "fmri_encoder": 304_937_984,
        "fa_module": 1_090_176,
        "prior_network": 22_882_320,
        "transformer_model": 3_702_296_576,
        "quantizer": 5_280_612,
        "decoder": 16_001,
        "encoder": 1_962_208,
    }
    assert sum(counts.values()) == 4_038_465_877
    header = meta_modules(MinD3DSizes(), stage1=True)["clip_header."]
    assert sum(p.numel() for p in header.parameters()) == 6_296_064


def test_a_full_checkpoint_on_the_meta_device_is_matched_and_loaded(tmp_path):
    """The names and shapes of the released file through the whole comparison; no memory is used."""
    tensors = {
        name: torch.zeros(shape, device="meta", dtype=torch.float16)
        for name, shape in expected_shapes(MinD3DSizes()).items()
    }
    from neurodiff.models import weights

    for name, table in schedule_tables(100).items():
        tensors[f"diffusion_prior.noise_scheduler.{name}"] = table.half()
    report = compare(weights.Checkpoint(tmp_path / "x.pt", "A", tensors))
    assert not report.broken
    assert report.sizes.differences() == []
    assert len(report.of("matched")) == 1226 - 87 - 1
    assert len(report.of("duplicate")) == 87
    assert len(report.of("tied")) == 1
    assert "as published" in report.table()


def test_sizes_are_read_off_the_shapes():
    assert sizes_of(expected_shapes(MinD3DSizes())) == MinD3DSizes()
    assert sizes_of(expected_shapes(SMALL), **HEADS) == SMALL
    assert MinD3DSizes().differences() == []
    assert "encoder embed_dim 16 (published 1024)" in SMALL.differences()


# --- loading -----------------------------------------------------------------------------------


def test_released_weights_load_and_compute_the_same(parts, released, write):
    brain, shapes, _ = parts
    loaded = load_mind3d(write(released), any_size=True, **HEADS)
    x, condition = torch.randn(2, 1, 64, 64), torch.randn(2, 32)
    ids = torch.randint(40, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.brain.fmri_encoder(x), brain.fmri_encoder(x), rtol=0, atol=0
        )
        ours = loaded.shapes.transformer_model(ids, condition)
        torch.testing.assert_close(ours, shapes.transformer_model(ids, condition), rtol=0, atol=0)
        ours = loaded.shapes.vqvae_model.planes_from_ids(ids)
        torch.testing.assert_close(ours, shapes.vqvae_model.planes_from_ids(ids), rtol=0, atol=0)
    assert loaded.brain.prior_network.protocol == "mind3d-2024"
    decoder = loaded.shapes.transformer_model
    assert decoder.z_value_dec.weight is decoder.emb.weight
    assert not any(p.requires_grad for p in loaded.shapes.parameters())
    assert all(not p.is_meta for m in (loaded.brain, loaded.shapes) for p in m.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_number_types_are_kept_or_cast(released, write, dtype):
    path = write({name: tensor.to(dtype) for name, tensor in released.items()})
    kept = load_mind3d(path, any_size=True, dtype=None, **HEADS)
    assert {p.dtype for p in kept.shapes.parameters()} == {dtype}
    rotary = kept.brain.prior_network.causal_transformer.layers[0][0].rotary_emb.freqs
    assert rotary.dtype == torch.float32  # positions up to 770 need it
    cast = load_mind3d(
        path, any_size=True, dtype=torch.float32, decoder_dtype=torch.bfloat16, **HEADS
    )
    assert {p.dtype for p in cast.shapes.transformer_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in cast.shapes.vqvae_model.parameters()} == {torch.float32}
    with torch.no_grad():
        tokens = torch.randn(1, 7, 32, dtype=dtype)
        predicted = kept.brain.prior_network(torch.randn(1, 32, dtype=dtype), 3, tokens)
    assert predicted.dtype == dtype
    assert torch.isfinite(predicted).all()


def test_safetensors_wrappers_and_a_single_prior(released, tmp_path, write):
    once = {
        f"module.{name}": tensor.clone()
        for name, tensor in released.items()
        if not name.startswith(("prior_network.", "diffusion_prior.noise"))
    }
    for name in [n for n in once if n.endswith("rotary_emb.freqs") and ".layers.0." not in n]:
        once[name] = once[name].clone()
    path = tmp_path / "weights.safetensors"
    save_file(once, path)
    loaded = load_mind3d(path, any_size=True, **HEADS)
    assert loaded.report.checkpoint.layout == "A"
    query = released["prior_network.learned_query"]
    torch.testing.assert_close(loaded.brain.prior_network.learned_query.data, query)


def _numel(shape):
    return int(torch.Size(shape).numel())


def _anonymous_memory():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's own accounting")
def test_a_mapped_file_takes_no_memory_of_its_own(tmp_path):
    """48 MB in the type of the file: the network is the file; nothing is copied."""
    size = ShapeDecoderSize(
        vocab=64, width=512, heads=8, layers=4, positions=19, condition=32, sequence=16
    )
    from neurodiff.models.shape_decoder import ShapeDecoder

    path = tmp_path / "decoder.pt"
    torch.save(ShapeDecoder(size).state_dict(), path)
    written = path.stat().st_size
    assert written > 45e6
    from neurodiff.core.safe_io import load_weights

    with torch.device("meta"):
        empty = ShapeDecoder(size)
    before = _anonymous_memory()
    fill(empty, load_weights(path), dtype=torch.float32)
    grown = _anonymous_memory() - before
    assert grown < 0.1 * written
    assert float(empty.emb.weight.detach().abs().sum()) > 0  # it can be read


# --- training checkpoints, encoder, PointNet ---------------------------------------------------


def test_own_training_checkpoints_of_both_stages(parts, released, write):
    second = {"epoch_it": 3, "it": 1200, "model": released | {"CLIP_Model.x": torch.zeros(2)}}
    loaded = load_mind3d(write(second), any_size=True, **HEADS)
    assert loaded.report.checkpoint.layout == "B stage 2"
    assert loaded.report.checkpoint.facts == {"epoch_it": 3, "it": 1200}
    header = {f"clip_header.{n}": t for n, t in parts[2].state_dict().items()}
    first = {n: t for n, t in released.items() if not n.startswith("shape_generator.")}
    first |= header | {"logit_scale": torch.tensor(2.6), "CLIP_Model.x": torch.zeros(2)}
    loaded = load_mind3d(write({"epoch_it": 1, "it": 9, "model": first}), any_size=True, **HEADS)
    assert loaded.report.checkpoint.layout == "B stage 1"
    assert loaded.shapes is None
    from neurodiff.pipelines.mind3d_published import PublishedMinD3D

    with pytest.raises(UsageError, match="stage-1 checkpoint: it has no shape decoder"):
        PublishedMinD3D.load(write({"model": first}), any_size=True, **HEADS)


def test_encoder_pre_training(parts, write):
    encoder = parts[0].fmri_encoder
    state = {f"module.transformer.{n}": t for n, t in encoder.state_dict().items()}
    state["module.transformer.mask_token"] = torch.zeros(1, 1, 4)
    path = write({"model": state})
    assert open_checkpoint(path).layout == "D"
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        ours = load_encoder(path, heads=4)
        torch.testing.assert_close(ours(x), encoder(x), rtol=0, atol=0)
    del state["module.transformer.blocks.1.attn.qkv.bias"]
    with pytest.raises(DataError, match=r"1 missing: fmri_encoder.blocks.1.attn.qkv.bias"):
        load_encoder(write({"model": state}))
    with pytest.raises(UsageError, match=r"layout D .*a part of the chain only"):
        load_mind3d(path)


class PointNetShell(nn.Module):
    """Names and shapes of the published PointNet, as its state dict lists them."""

    def __init__(self):
        super().__init__()
        self.feat = nn.Module()
        self.feat.stn = nn.Module()
        for place in (self.feat.stn, self.feat):
            for k, (a, b) in enumerate(((3, 64), (64, 128), (128, 1024)), 1):
                setattr(place, f"conv{k}", nn.Conv1d(a, b, 1))
                setattr(place, f"bn{k}", nn.BatchNorm1d(b))
        for place, last in ((self.feat.stn, 9), (self, 13)):
            for k, (a, b) in enumerate(((1024, 512), (512, 256), (256, last)), 1):
                setattr(place, f"fc{k}", nn.Linear(a, b))
        self.feat.stn.bn4, self.feat.stn.bn5 = nn.BatchNorm1d(512), nn.BatchNorm1d(256)
        self.bn1, self.bn2 = nn.BatchNorm1d(512), nn.BatchNorm1d(256)


def test_pointnet_of_the_frechet_distance(write):
    source, target = PointNetShell(), PointNetShell()
    assert sum(p.numel() for p in source.parameters()) == 1_607_190
    path = write({"epoch": 300, "model_state_dict": source.state_dict(), "optimizer": {}})
    report = compare(open_checkpoint(path))
    assert report.checkpoint.layout == "F"
    assert not report.broken
    assert not report.of("unexpected")
    load_pointnet(path, target)
    assert torch.equal(target.fc3.weight, source.fc3.weight)
    half = dict(list(source.state_dict().items())[:30])
    with pytest.raises(DataError, match="no whole checkpoint of layout F"):
        load_pointnet(write({"model_state_dict": half}), target)


# --- refusals ----------------------------------------------------------------------------------


def test_half_a_checkpoint_is_refused_with_what_is_missing(released, write):
    names = sorted(released)
    path = write({name: released[name] for name in names[: len(names) // 2]})
    with pytest.raises(
        DataError, match=r"no whole checkpoint of layout A .* missing: .* and \d+ more"
    ):
        load_mind3d(path, any_size=True, **HEADS)
    data = write(released).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="not a complete weights file"):
        open_checkpoint(path)


def test_one_tensor_of_another_shape_and_another_size(released, write):
    name = "fmri_encoder.blocks.1.attn.qkv.weight"
    wrong = write(released | {name: torch.zeros(48, 17)})
    with pytest.raises(DataError, match=rf"1 other shape: {name} \(48, 17\); expected \(48, 16\)"):
        load_mind3d(wrong, any_size=True, **HEADS)
    with pytest.raises(DataError, match="of another size than the published model: encoder image"):
        load_mind3d(write(released), **HEADS)
    with pytest.raises(DataError, match="of no possible size"):
        load_mind3d(write(released | {"fmri_encoder.pos_embed": torch.zeros(1, 16, 16)}))


def test_copies_that_differ_are_refused(released, write):
    name = "diffusion_prior.net.learned_query"
    with pytest.raises(DataError, match=rf"1 differs: {name} not equal to prior_network"):
        load_mind3d(write(released | {name: torch.zeros(32)}), any_size=True, **HEADS)
    name = "shape_generator.transformer_model.z_value_dec.weight"
    with pytest.raises(DataError, match=rf"1 differs: {name} not equal to .*emb.weight"):
        load_mind3d(write(released | {name: torch.zeros(40, 16)}), any_size=True, **HEADS)
    name = "diffusion_prior.noise_scheduler.alphas_cumprod"
    with pytest.raises(DataError, match=rf"1 differs: {name} of another diffusion path"):
        load_mind3d(write(released | {name: torch.rand(100)}), any_size=True, **HEADS)


def test_what_nothing_reads_may_be_missing(released, write):
    dead = ("null_fmri_encodings", "encoder.unet.", "diffusion_prior.")
    path = write({n: t for n, t in released.items() if not any(part in n for part in dead)})
    loaded = load_mind3d(path, any_size=True, **HEADS)
    assert all(not p.is_meta for p in loaded.brain.parameters())
    assert not hasattr(loaded.shapes.vqvae_model.encoder, "unet")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"a": 1}, "without named tensors"),
        ([torch.zeros(2)], "list without named tensors"),
        ({"weight": torch.zeros(2)}, r"no network that neurodiff knows \(first names: weight\)"),
        ({"model": {"unet.base_model.x": torch.zeros(2)}}, r"MinD-3D\+\+ \(layout C\)"),
        ({"state_dict": {"lrm_generator.x": torch.zeros(2)}}, r"InstantMesh \(layout E\)"),
    ],
)
def test_files_of_something_else(write, content, sentence):
    with pytest.raises(DataError, match=sentence):
        open_checkpoint(write(content))


def test_a_pickle_that_is_no_checkpoint(tmp_path, write):
    path = tmp_path / "object.pt"
    path.write_bytes(pickle.dumps({"model": os.system}))
    with pytest.raises(DataError, match=r"weights|pickle"):
        open_checkpoint(path)
    with pytest.raises(DataError, match="could run code"):
        open_checkpoint(write({"model": os.system, "x": torch.zeros(1)}))
    with pytest.raises(MissingDataError):
        open_checkpoint(tmp_path / "none.pt")


def test_values_that_are_not_finite_are_found(released, write):
    bad = released | {"fa_module.ln1.bias": torch.full((24,), torch.nan)}
    assert not_finite(open_checkpoint(write(bad))) == ["fa_module.ln1.bias"]
    assert not_finite(open_checkpoint(write(released))) == []
