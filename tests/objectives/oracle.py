"""The losses again, one group at a time with plain float64 numbers, written from the papers and not from our code.

Names as in the papers: `lw`, `ll` log-probs of chosen and rejected under the policy, `rw`, `rl` under the reference,
`nw`, `nl` their tokens. Defaults are the papers' or, where they say none, those that the documentation promises.
"""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.float64(x)))


def nls(x):
    """-log σ(x)."""
    return -np.log(sigmoid(x))


def alphapo(lw, ll, rw, rl, nw, nl, beta=2.5, gamma_beta_ratio=0.1, alpha=0.25):
    if alpha == 0:
        return simpo(lw, ll, rw, rl, nw, nl, beta, gamma_beta_ratio)
    power_w, power_l = np.exp(lw) ** (-alpha / nw), np.exp(ll) ** (-alpha / nl)
    return nls(-beta / alpha * power_w + beta / alpha * power_l - gamma_beta_ratio * beta)


def apo_down(lw, ll, rw, rl, nw, nl, beta=0.1):
    return sigmoid(beta * (lw - rw)) + 1 - sigmoid(beta * ((lw - rw) - (ll - rl)))


def apo_zero(lw, ll, rw, rl, nw, nl, beta=0.1):
    return 1 - sigmoid(beta * (lw - rw)) + sigmoid(beta * (ll - rl))


def bco_pair(lw, ll, rw, rl, nw, nl, beta=0.1, delta=0.0):
    return nls(beta * (lw - rw) - delta) + nls(-(beta * (ll - rl) - delta))


def cpo(lw, ll, rw, rl, nw, nl, beta=0.1, label_smoothing=0.0, loss_type="sigmoid"):
    return dpo(lw, ll, 0.0, 0.0, nw, nl, beta, label_smoothing, loss_type)


def discopop(lw, ll, rw, rl, nw, nl, beta=0.1, tau=0.05):
    rho = beta * ((lw - rw) - (ll - rl))
    return (1 - sigmoid(rho / tau)) * nls(rho) + sigmoid(rho / tau) * np.exp(-rho)


def dpo(lw, ll, rw, rl, nw, nl, beta=0.1, label_smoothing=0.0, loss_type="sigmoid"):
    z, e = beta * (lw - rw) - beta * (ll - rl), label_smoothing
    if loss_type == "hinge":
        return max(0.0, 1.0 - z)
    if loss_type == "robust":
        return ((1 - e) * nls(z) - e * nls(-z)) / (1 - 2 * e)
    return (1 - e) * nls(z) + e * nls(-z)


def dpo_norm(lw, ll, rw, rl, nw, nl, beta=5.0):
    return nls(beta / nw * (lw - rw) - beta / nl * (ll - rl))


def exo_pair(lw, ll, rw, rl, nw, nl, beta=0.1, label_smoothing=1e-3):
    ratios = [np.exp(beta * (lw - rw)), np.exp(beta * (ll - rl))]
    label = [1 - label_smoothing, label_smoothing]
    divergence = 0.0
    for ratio, wanted in zip(ratios, label, strict=True):
        share = ratio / sum(ratios)
        divergence += share * np.log(share / wanted)
    return divergence


def ipo(lw, ll, rw, rl, nw, nl, tau=0.1, normalize="none"):
    if normalize == "length":
        lw, rw, ll, rl = lw / nw, rw / nw, ll / nl, rl / nl
    h = np.log(np.exp(lw - rw) / np.exp(ll - rl))
    return (h - 1 / (2 * tau)) ** 2


def nca_pair(lw, ll, rw, rl, nw, nl, beta=0.1):
    reward_w, reward_l = beta * (lw - rw), beta * (ll - rl)
    return nls(reward_w) + (nls(-reward_w) + nls(-reward_l)) / 2


def orpo(lw, ll, rw, rl, nw, nl, beta=0.1):
    p_w, p_l = np.exp(lw / nw), np.exp(ll / nl)
    odds_ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    return -lw / nw + beta * nls(np.log(odds_ratio))


def rdpo(lw, ll, rw, rl, nw, nl, beta=0.1, alpha=0.05):
    return nls(beta * (lw - rw) - beta * (ll - rl) + (alpha * nw - alpha * nl))


def simpo(lw, ll, rw, rl, nw, nl, beta=2.0, gamma_beta_ratio=0.5, label_smoothing=0.0, loss_type="sigmoid"):
    z = beta / nw * lw - beta / nl * ll - gamma_beta_ratio * beta
    if loss_type == "hinge":
        return max(0.0, 1.0 - z)
    return (1 - label_smoothing) * nls(z) + label_smoothing * nls(-z)


def slic_hf(lw, ll, rw, rl, nw, nl, delta=1.0):
    return max(0.0, delta - lw + ll)


def sppo_hard(lw, ll, rw, rl, nw, nl, beta=0.1):
    return (lw - rw - (1 - 0.5) / beta) ** 2 + (ll - rl - (0 - 0.5) / beta) ** 2


PAIR_LOSSES = {
    loss.__name__: loss
    for loss in (
        alphapo, apo_down, apo_zero, bco_pair, cpo, discopop, dpo, dpo_norm, exo_pair, ipo, nca_pair, orpo, rdpo, simpo,
        slic_hf, sppo_hard,
    )
}  # fmt: skip


def kto(policy, reference, score, z, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    z = max(0.0, z)
    if score > 0:
        return desirable_weight * (1 - sigmoid(beta * (policy - reference - z)))
    return undesirable_weight * (1 - sigmoid(beta * (z - (policy - reference))))


def ranked_pairs(scores, valid):
    """(i, j) with i better than j; by order where no score differs."""
    there = [i for i in range(len(scores)) if valid[i]]
    by_score = [(i, j) for i in there for j in there if scores[i] > scores[j]]
    return by_score or [(i, j) for i in there for j in there if i < j]


def rrhf(sums, lengths, scores, valid):
    total = 0.0
    for i, j in ranked_pairs(scores, valid):
        total += max(0.0, sums[j] / lengths[j] - sums[i] / lengths[i])
    return total


def reward(sums, scores, valid, center_rewards_coefficient=0.0, margin=0.0, margin_scale=0.0):
    costs = []
    for i, j in ranked_pairs(scores, valid):
        lead = margin + margin_scale * (scores[i] - scores[j])
        costs.append(nls(sums[i] - sums[j] - lead) + center_rewards_coefficient * (sums[i] + sums[j]) ** 2)
    return sum(costs) / len(costs) if costs else 0.0


def aot(policy, reference, beta=0.1, label_smoothing=0.0, loss_type="paired"):
    """Losses of all groups: the k-th smallest of u meets the k-th smallest of v."""
    if loss_type == "paired":
        u = [w - l for w, l in policy]
        v = [w - l for w, l in reference]
    else:
        u = [p[0] - r[0] for p, r in zip(policy, reference, strict=True)]
        v = [p[1] - r[1] for p, r in zip(policy, reference, strict=True)]
    losses = [0.0] * len(u)
    for quantile, group in enumerate(sorted(range(len(u)), key=lambda g: u[g])):
        z = beta * (u[group] - sorted(v)[quantile])
        losses[group] = (1 - label_smoothing) * nls(z) + label_smoothing * nls(-z)
    return losses


def losses(name, keys, policy, reference, feedback):
    """One loss a group, from the tensors that an objective gets."""
    if name == "mixture":
        total = np.zeros(len(policy.sums))
        for part, given in keys.get("mixture", {"dpo": 0.8, "bco_pair": 0.2}).items():
            own = dict(given) if isinstance(given, dict) else {"weight": given}
            weight = own.pop("weight")
            total += weight * np.array(losses(part, own, policy, reference, feedback))
        return total.tolist()
    sums, lengths, ref = policy.sums.tolist(), policy.lengths.tolist(), reference.sums.tolist()
    scores, valid, baseline = feedback.scores.tolist(), feedback.valid.tolist(), feedback.baseline.item()
    groups = range(len(sums))
    if name == "aot":
        return aot(sums, ref, **keys)
    if name == "sft":
        return [-sums[g][0] for g in groups]
    if name == "kto":
        return [kto(sums[g][0], ref[g][0], scores[g][0], baseline, **keys) for g in groups]
    if name == "rrhf":
        return [rrhf(sums[g], lengths[g], scores[g], valid[g]) for g in groups]
    if name == "reward":
        return [reward(sums[g], scores[g], valid[g], **keys) for g in groups]
    if name == "bco_pair":
        keys = {**keys, "delta": baseline}
    return [PAIR_LOSSES[name](*sums[g], *ref[g], *lengths[g], **keys) for g in groups]
