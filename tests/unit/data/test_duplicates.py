import random

import numpy as np

from gemworks.data.duplicates import NUM_HASHES, exact_digest, find_duplicates, min_hashes
from gemworks.data.reweighing import (
    ReferenceClassifier,
    density_weights,
    reference_weights,
)
from gemworks.data.words import Words


def document(seed, words=300):
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(words)]


def changed(words, share, seed):
    rng = random.Random(seed)
    return [f"x{rng.randrange(5000)}" if rng.random() < share else word for word in words]


def jaccard(a, b):
    grams = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (a, b)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def signatures(texts):
    words = [Words(text) for text in texts]
    exact = np.frombuffer(b"".join(map(exact_digest, words)), np.uint64).reshape(-1, 2)
    return exact, np.stack([min_hashes(one) for one in words])


def test_minhash_estimates_jaccard():
    """112 hashes: a standard deviation of 0.047 at most. Mean error over 60 pairs below 0.02, none above 0.19."""
    errors = []
    for seed in range(60):
        first = document(seed)
        second = changed(first, 0.002 * seed, seed)
        a, b = (min_hashes(Words(" ".join(words))) for words in (first, second))
        errors.append(float((a == b).mean()) - jaccard(first, second))
    assert abs(np.mean(errors)) < 0.02
    assert max(map(abs, errors)) < 0.19


def test_copies_go_and_the_first_stays():
    first = " ".join(document(1))
    near = " ".join(changed(document(1), 0.01, 5))
    texts = [" ".join(document(2)), first, first.upper() + " !", near, " ".join(document(3)), "a b", "a  B.", "c d"]
    found = find_duplicates(*signatures(texts))
    assert found.original.tolist() == [0, 1, 1, 1, 4, 5, 5, 7]
    assert found.is_exact.tolist() == [False, False, True, False, False, False, True, False]
    assert 0.7 <= found.similarity[3] < 1
    assert found.drops.sum() == 3


def test_recall_and_precision_over_similarities():
    """At s >= 0.85 nearly all are found (0.98 by the formula), at s <= 0.5 none: the estimate has to agree, too."""
    texts, close, far = [], [], []
    for seed in range(150):
        first = document(1000 + seed)
        second = changed(first, [0.01, 0.02, 0.1][seed % 3], seed)
        s = jaccard(first, second)
        (close if s >= 0.85 else far if s <= 0.5 else []).append(len(texts) + 1)
        texts += [" ".join(first), " ".join(second)]
    drops = find_duplicates(*signatures(texts)).drops
    assert len(close) > 40
    assert len(far) > 40
    assert drops[close].mean() > 0.93
    assert drops[far].sum() == 0
    assert drops[0::2].sum() == 0


def test_no_documents_have_no_duplicates():
    found = find_duplicates(np.empty((0, 2), np.uint64), np.empty((0, NUM_HASHES), np.uint32))
    assert found.drops.size == 0


def test_density_weighs_common_text_down():
    common = [" ".join(changed(document(1), 0.05, seed)) for seed in range(60)]
    rare = [" ".join(document(100 + seed)) for seed in range(60)]
    weights = density_weights(signatures(common + rare)[1])
    assert weights.mean() == np.float32(1) or abs(weights.mean() - 1) < 1e-5
    assert weights[:60].max() < weights[60:].min()
    assert weights.max() / weights.min() <= 16.01


def test_a_reference_weighs_its_like_up(write):
    good = ["the boat went up the river past the island in winter " * 5]
    other = "stock price index market fund quarter yield share bond rate " * 5
    classifier = ReferenceClassifier()
    classifier.add_reference([write("good.jsonl", [{"text": text} for text in good * 20])])
    texts = [good[0], other] * 10
    for text in texts:
        classifier.add(text)
    weights = reference_weights(classifier.log_odds(text) for text in texts)
    assert (weights[0::2] > 2 * weights[1::2]).all()
    assert abs(weights.mean() - 1) < 1e-5
