"""The functions of native.py against PyTorch's own, forward and backward, in both types and at odd sizes."""

import pytest
import torch
import torch.nn.functional as F

import native

SIZES = [(120, 6, 72, 4, 144), (37, 5, 21, 3, 13), (20, 6, 96, 2, 33)]  # T, C, D, H, F; heads of 18, 7 and 48 features
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=SIZES, ids=str)
def sizes(request):
    return request.param


@pytest.fixture
def built(sizes, dtype):
    return native.library(*sizes, dtype) or pytest.skip("no GCC here")


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def assert_same(ours, plain, inputs, dtype, typed, tolerance=None):
    """Results and gradients. The first `typed` inputs are of `dtype`; the plain function gets the same in float32."""
    found = []
    for fn, convert in ((ours, lambda x: x), (plain, torch.Tensor.float)):
        leaves = [x.to(dtype) if i < typed else x for i, x in enumerate(inputs)]
        leaves = [convert(x).clone().requires_grad_() for x in leaves]
        out = fn(*leaves)
        # it lies in memory otherwise, as autograd's may
        gradient = randn(*reversed(out.shape), seed=1).permute(*reversed(range(out.dim()))).to(dtype)
        out.backward(gradient.to(out.dtype))
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    assert all(x.dtype == dtype for x in found[0][: 1 + typed])
    for mine, wanted in zip(*found, strict=True):
        assert (mine.float() - wanted).norm() <= (tolerance or TOLERANCE[dtype]) * wanted.norm()


def plain_attention(q, kv, D, H):
    """softmax(q k^T) v of heads: q (B, M, D) or None, then it is the first D of kv's features."""
    parts = kv[..., :D] if q is None else q, kv[..., -2 * D : -D], kv[..., -D:]
    q, k, v = (part.unflatten(2, (H, -1)).transpose(1, 2) for part in parts)
    return (torch.softmax(q @ k.transpose(2, 3), dim=-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("M", [None, 1, 17, 20])
def test_attention(sizes, dtype, built, M):
    T, _, D, H, _ = sizes
    if M is None:
        inputs = [randn(3, T, 3 * D)]
        assert_same(lambda x: native.Attention.apply(None, x, built), lambda x: plain_attention(None, x, D, H), inputs,
                    dtype, 1)  # fmt: skip
    else:
        inputs = [randn(3, M, D), randn(3, T, 2 * D)]
        assert_same(lambda q, kv: native.Attention.apply(q, kv, built), lambda q, kv: plain_attention(q, kv, D, H),
                    inputs, dtype, 2)  # fmt: skip


@pytest.mark.parametrize("size", [30.0, -30.0])
def test_attention_with_large_scores(size):
    """All scores of a query are some hundred above or below 0, where their exponentials are no numbers of float32."""
    T, _, D, H, _ = SIZES[0]
    built = native.library(*SIZES[0]) or pytest.skip("no GCC here")
    x = 1 + randn(2, T, 3 * D) / 10
    x[..., :D] *= size
    assert_same(lambda x: native.Attention.apply(None, x, built), lambda x: plain_attention(None, x, D, H), [x],
                torch.float32, 1, tolerance=1e-3)  # fmt: skip


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_does_not_vanish(number):
    """A run that diverges must be seen to."""
    T, _, D, _, _ = SIZES[0]
    built = native.library(*SIZES[0]) or pytest.skip("no GCC here")
    x = randn(1, T, 3 * D)
    x[0, 7, 3] = number  # a query's; then a key's
    assert native.Attention.apply(None, x, built)[0, 7].isnan().any()
    x = randn(1, T, 3 * D)
    x[0, 7, D + 3] = number
    assert native.Attention.apply(None, x, built).isnan().any()
    z = randn(1, T, D)
    z[0, 3, 5] = number
    assert native.Norm.apply(z, None, randn(D), randn(D), randn(D), built)[0, 3].isnan().all()
    assert not native.Gelu.apply(torch.full((1, SIZES[0][4]), number), randn(SIZES[0][4]), built).isfinite().any()


@pytest.mark.parametrize("residual", [True, False])
def test_norm(sizes, dtype, built, residual):
    T, _, D, _, _ = sizes
    inputs = [
        randn(3, T, D),
        *([randn(3, T, D, seed=1)] if residual else []),
        randn(D),
        randn(D, seed=2),
        randn(D, seed=3),
    ]

    def ours(z, *rest):
        return native.Norm.apply(z, *(rest if residual else (None, *rest)), built)

    def plain(z, *rest):
        *added, bias, gamma, beta = rest
        return F.layer_norm(sum(added, z) + bias, (D,), gamma, beta, 1e-12)

    assert_same(ours, plain, inputs, dtype, 1 + residual)


def test_gelu(sizes, dtype, built):
    inputs = [3 * randn(3, 40, sizes[4]), randn(sizes[4])]
    assert_same(lambda x, b: native.Gelu.apply(x, b, built), lambda x, b: F.gelu(x + b), inputs, dtype, 1)


def test_embedding(sizes, dtype, built):
    T, C, D, _, _ = sizes
    x = randn(3, T, C)
    x[:, 2:5] = 0  # masked steps

    def plain(weight, bias, gamma, beta, position):
        h = F.layer_norm(F.linear(x, weight, bias), (D,), gamma, beta, 1e-12)
        return F.layer_norm(h + position, (D,), gamma, beta, 1e-12)

    inputs = [randn(D, C), randn(D), randn(D, seed=1), randn(D, seed=2), randn(T, D)]
    assert_same(lambda *given: native.Embed.apply(x, *given, built), plain, inputs, dtype, 0)


def test_the_same_bits_on_one_thread_and_two(sizes, dtype, built):
    """Of what is not summed over rows."""
    T, _, D, _, _ = sizes
    x = randn(5, T, 3 * D).to(dtype)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(native.Attention.apply(None, x, built))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_other_shapes_and_types_are_refused():
    """The C code would read beyond."""
    T, C, D, _, inner = SIZES[0]
    built = native.library(*SIZES[0]) or pytest.skip("no GCC here")
    vectors = randn(D), randn(D), randn(D)
    for call in (
        lambda: native.Attention.apply(randn(2, 5, D).bfloat16(), randn(2, T, 2 * D), built),
        lambda: native.Attention.apply(randn(2, T + 1, D), randn(2, T, 2 * D), built),
        lambda: native.Attention.apply(None, randn(2, T - 1, 3 * D), built),
        lambda: native.Norm.apply(randn(2, T, D + 1), None, *vectors, built),
        lambda: native.Norm.apply(randn(2, T, D), randn(2, T - 1, D), *vectors, built),
        lambda: native.Gelu.apply(randn(2, inner).bfloat16(), randn(inner), built),
        *(lambda x=x: native.Embed.apply(x, randn(D, C), *vectors, randn(T, D), built)
          for x in (randn(2, T + 1, C), randn(2, T, C - 1), randn(2, T, C).double())),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="cpu_kernels.c was built for"):
            call()


def test_without_a_compiler_there_is_nothing_built_and_a_reason(monkeypatch, tmp_path):
    library = native.library.__wrapped__  # without its cache
    monkeypatch.setattr(native, "FOLDER", tmp_path / "build")
    for compiler in ("false", "no-such-compiler"):
        monkeypatch.setenv("CC", compiler)
        assert library(*SIZES[0]) is None and compiler in native.why_not.pop((*SIZES[0], torch.float32))
    assert not list((tmp_path / "build").glob("*.so"))
    (tmp_path / "file").touch()
    monkeypatch.setattr(native, "FOLDER", tmp_path / "file" / "build")
    assert library(*SIZES[0]) is None and "file" in native.why_not.pop((*SIZES[0], torch.float32))
    for sizes in ((*SIZES[0], torch.float64), (20000, 6, 72, 4, 144, torch.float32)):  # the latter's stack is too small
        assert library(*sizes) is None and "too large" in native.why_not.pop(sizes)


def test_the_compiler_may_be_a_command_of_several_words(monkeypatch, tmp_path):
    if native.library(*SIZES[1]) is None:
        pytest.skip("no GCC here")
    monkeypatch.setattr(native, "FOLDER", tmp_path / "build")
    monkeypatch.setenv("CC", "env LC_ALL=C cc")
    assert native.library.__wrapped__(*SIZES[1])


def test_what_is_built_is_kept_and_made_anew_for_another_source(monkeypatch, tmp_path):
    if native.library(*SIZES[1]) is None:
        pytest.skip("no GCC here")
    library, calls, build = native.library.__wrapped__, [], native.build
    monkeypatch.setattr(native, "FOLDER", tmp_path / "build")
    monkeypatch.setattr(native, "build", lambda *given: calls.append(given) or build(*given))
    assert library(*SIZES[1]) and library(*SIZES[1]) and len(calls) == 1
    changed = tmp_path / "changed.c"
    changed.write_bytes(native.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(native, "SOURCE", changed)
    assert library(*SIZES[1]) and len(calls) == 2
    assert len(list((tmp_path / "build").iterdir())) == 2  # nothing but the two libraries
