"""Divergences of on-policy distillation against torch: values and gradients, in parts and in one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gemworks.train.on_policy import DIVERGENCES, OnPolicy

B, T, D, E, V = 2, 6, 8, 12, 50


def torch_divergence(kind: str, student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """[B, T] of logits, through torch's own KL: F.kl_div(ln q, ln p) is p (ln p - ln q)."""
    q, p = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)

    def kl(a, b):
        return F.kl_div(b, a, reduction="none", log_target=True).sum(-1)

    if kind == "jsd":
        mixed = torch.log(beta * p.exp() + (1 - beta) * q.exp())
        return beta * kl(p, mixed) + (1 - beta) * kl(q, mixed)
    return kl(p, q) if kind == "forward" else kl(q, p)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_gradients_of_states_and_head_are_torchs(kind, beta):
    rng = np.random.default_rng(1)
    shapes = (B, T, D), (V, D), (B, T, E), (V, E)
    h, head, taught, taught_head = (rng.normal(0, 1, shape).astype(np.float32) for shape in shapes)
    weight, targets = rng.random((B, T)).astype(np.float32), rng.integers(0, V, (B, T)).astype(np.int32)

    ours = OnPolicy(divergence=kind, beta=beta, logits_at_once=2 * B * V)  # three parts of two tokens

    def total(h, head):
        found = ours._divergences(h, head, jnp.asarray(taught), jnp.asarray(taught_head), jnp.asarray(targets))
        return (found[0] * weight).sum(), found

    grads, (values, nll, teacher_nll) = jax.grad(total, argnums=(0, 1), has_aux=True)(jnp.asarray(h), jnp.asarray(head))

    th, thead = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (h, head))
    student = th @ thead.T
    teacher = torch.tensor(taught, dtype=torch.float64) @ torch.tensor(taught_head, dtype=torch.float64).T
    wanted = torch_divergence(kind, student, teacher, beta)
    (wanted * torch.tensor(weight)).sum().backward()

    np.testing.assert_allclose(values, wanted.detach(), rtol=1e-4, atol=1e-6)
    for got, leaf in zip(grads, (th, thead), strict=True):
        error = np.linalg.norm(np.asarray(got) - leaf.grad.numpy()) / np.linalg.norm(leaf.grad.numpy())
        assert error <= 1e-5
    for got, logits in ((nll, student), (teacher_nll, teacher)):
        cross = F.cross_entropy(logits.detach().reshape(-1, V), torch.tensor(targets.ravel()).long(), reduction="none")
        np.testing.assert_allclose(np.asarray(got).ravel(), cross, rtol=1e-4, atol=1e-5)
