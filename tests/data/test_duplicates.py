import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from geopak.data import duplicates
from geopak.data.duplicates import (
    find_look_alikes,
    hashes_of_frequencies,
    low_frequencies,
    perceptual_hash,
    stack_hashes,
)


def packed(bits):
    return np.packbits(np.asarray(bits, np.uint8), axis=1).view(np.uint64).reshape(len(bits), 4)


def scattered(seed, num, skew=False):
    """Bits (N, 256) around few centres, many of them near or equal."""
    rng = np.random.default_rng(seed)
    share = rng.choice([0.0, 0.03, 0.5], 256) if skew else 0.5
    base = rng.random((3, 256)) < share
    flips = rng.random((num, 256)) < rng.choice([0, 0.01, 0.03, 0.06, 0.1], (num, 1))
    return (base[rng.integers(0, 3, num)] ^ flips).astype(np.uint8)


def all_pairs(bits, max_bits):
    return {
        (a, b)
        for a in range(len(bits))
        for b in range(a + 1, len(bits))
        if (bits[a] != bits[b]).sum() <= max_bits
    }


def naive_originals(num, pairs):
    original = list(range(num))
    for later in range(num):
        kept = [a for a in range(later) if original[a] == a and (a, later) in pairs]
        original[later] = kept[0] if kept else later
    return original


def naive_components(num, pairs):
    group = list(range(num))
    for _ in range(num):
        for a, b in pairs:
            group[a] = group[b] = min(group[a], group[b])
    return group


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 32), st.booleans())
# Bands of 128 and 86 bits.
@example(1, 40, 1, True)
@example(2, 40, 2, True)
def test_look_alikes_agree_with_all_pairs(seed, num, max_bits, skew):
    bits = scattered(seed, num, skew)
    expected = all_pairs(bits, max_bits)
    found = find_look_alikes(packed(bits), max_bits)
    a, b = found.pairs()
    assert len(a) == len(expected)
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == expected
    assert found.exact
    assert found.components().tolist() == naive_components(num, expected)
    assert found.originals().tolist() == naive_originals(num, expected)
    chosen = np.random.default_rng(seed).random(num) < 0.3
    touched = [any((min(a, b), max(a, b)) in expected and chosen[b] for b in range(num) if b != a)
               for a in range(num)]  # fmt: skip
    assert found.near_any(chosen).tolist() == touched


@pytest.mark.parametrize("num", [100, 10**4, 10**6, 10**8])
@pytest.mark.parametrize("max_bits", [1, 5, 16, 24, 32])
def test_every_pair_shares_the_key_of_a_table(num, max_bits):
    rng = np.random.default_rng(num + max_bits)
    order, tables = duplicates._plan(rng.random(256), num, max_bits)
    assert sorted(order) == list(range(256))
    for trial in range(200):
        # Worst cases too: differences spread evenly over all bits.
        evenly = np.arange(max_bits) * 256 // max_bits
        wrong = evenly if trial == 0 else rng.choice(256, max_bits, replace=False)
        differs = np.zeros(256, bool)
        differs[wrong] = True
        assert any(not any(differs[a:b].any() for a, b in bands) for bands in tables)


def test_a_plan_grows_like_n_log_n():
    def effort(num):
        _, tables = duplicates._plan(np.ones(256), num, 16)
        key_bits = min(sum(b - a for a, b in bands) for bands in tables)
        return len(tables) * (num + num * num / 2**key_bits)

    assert effort(10**7) < 10 * effort(10**6) * 2
    assert effort(10**6) < 10 * effort(10**5) * 2


def test_a_large_set_has_the_planted_pairs_and_no_other():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (20_000, 256), np.uint8)
    for k in range(500):
        bits[10_000 + k] = bits[k]
        bits[10_000 + k, rng.choice(256, 16, replace=False)] ^= 1
        bits[11_000 + k] = bits[k]
        bits[11_000 + k, rng.choice(256, 17, replace=False)] ^= 1
    found = find_look_alikes(packed(bits), 16)
    near = bits[found.first] != bits[found.later]
    assert near.sum(1).max() <= 16
    planted = {(k, 10_000 + k) for k in range(500)}
    pairs = set(zip(found.first.tolist(), found.later.tolist(), strict=True))
    # The nearness of a copy of a copy is chance, and exact all the same.
    assert planted <= pairs
    assert {b - a for a, b in pairs} <= {1_000, 10_000}
    assert found.exact


def test_a_million_equal_hashes_are_one_group():
    hashes = np.full((1_000_000, 4), 7, np.uint64)
    hashes[::2, 0] = 6
    found = find_look_alikes(hashes, 16)
    assert len(found.first) == 1
    assert not found.components().any()
    assert not found.originals().any()
    assert found.exact


def test_crowded_buckets_are_counted_and_stay_cheap(monkeypatch):
    monkeypatch.setattr(duplicates, "_EFFORT", 0)
    monkeypatch.setattr(duplicates, "_WINDOW", 4)
    rng = np.random.default_rng(1)
    bits = np.repeat(rng.integers(0, 2, (1, 256), np.uint8), 5_000, 0)
    for _ in range(6):
        bits[np.arange(5_000), rng.integers(0, 256, 5_000)] ^= 1
    found = find_look_alikes(packed(bits), 16)
    assert 0 < found.num_crowded <= 5_000
    assert not found.exact
    assert len(found.first) < 5_000 * 200
    assert (bits[found.first] != bits[found.later]).sum(1).max() <= 16
    assert len(np.unique(found.components())) == 1


def test_too_many_pairs_are_thinned_and_counted(monkeypatch):
    monkeypatch.setattr(duplicates, "_PAIRS_ALWAYS", 0)
    monkeypatch.setattr(duplicates, "_PAIRS_PER_HASH", 4)
    rng = np.random.default_rng(2)
    bits = np.repeat(rng.integers(0, 2, (1, 256), np.uint8), 300, 0)
    bits[np.arange(300), rng.integers(0, 256, 300)] ^= 1
    bits[np.arange(300), rng.integers(0, 256, 300)] ^= 1
    found = find_look_alikes(packed(bits), 16)
    assert found.num_thinned > 0
    assert len(found.first) <= 300 * 8
    assert not found.components().any()
    assert not found.originals().any()


@pytest.mark.parametrize("num", [0, 1, 2])
def test_few_photos(num):
    found = find_look_alikes(np.zeros((num, 4), np.uint64), 16)
    assert found.originals().tolist() == [0] * num
    assert found.components().tolist() == [0] * num


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="0 to 32"):
        find_look_alikes(np.zeros((2, 4), np.uint64), 33)
    with pytest.raises(ValueError, match="32 bytes"):
        stack_hashes([b"1" * 31, b"1" * 33])


def naive_frequencies(pixels):
    height, width = pixels.shape
    y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
    rows = []
    for v in range(16):
        for u in range(16):
            wave = np.cos(np.pi * v * y / height)[:, None] * np.cos(np.pi * u * x / width)
            norm = np.sqrt((1 if v == 0 else 2) / height * (1 if u == 0 else 2) / width)
            rows.append((wave * pixels).sum() * norm)
    return np.array(rows)


def test_frequencies_are_those_of_the_cosine_transform():
    pixels = np.random.default_rng(0).random((40, 31)).astype(np.float32) * 255
    np.testing.assert_allclose(low_frequencies(pixels), naive_frequencies(pixels), atol=0.05)


def test_the_hash_does_not_depend_on_size_or_brightness():
    rng = np.random.default_rng(3)
    coarse = rng.random((24, 32))
    large = np.kron(coarse, np.ones((8, 8))).astype(np.float32) * 200
    small = np.kron(coarse, np.ones((4, 4))).astype(np.float32) * 200

    def differ(a, b):
        return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))

    assert differ(perceptual_hash(large), perceptual_hash(small)) <= 8
    assert differ(perceptual_hash(large), perceptual_hash(large * 0.5 + 20)) == 0
    other = np.kron(rng.random((24, 32)), np.ones((8, 8))).astype(np.float32) * 200
    assert differ(perceptual_hash(large), perceptual_hash(other)) > 90
    batch = np.stack([low_frequencies(large), low_frequencies(other)])
    assert hashes_of_frequencies(batch)[1].tobytes() == perceptual_hash(other)
