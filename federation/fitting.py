"""A draft fitted to a treaty: the fixed-point scales and the noise that make each sum cost what the draft's ε allows.

Nodes don't trust this arithmetic: they price what it comes to anew (`limits`).
"""

from __future__ import annotations

import math
import secrets
from datetime import UTC, datetime
from typing import Any, overload

from ..compliance.treaty import Treaty
from ..errors import InputError
from ..privacy.accountant import epsilon_to_mu
from ..privacy.secagg.rings import WIDTHS
from .counting import CountDraft, CountPlan, CountPrivacy, CountStudy
from .limits import check_against
from .modes import Mode
from .pricing import price
from .rounds import Shape, Task, ring_for
from .study import AnyDraft, AnyStudy, Draft, Plan, Privacy, Study, shape_of

EXTRA_NOISE = 0.01
"""How much more noise a narrower modulus may ask for."""
MARGINS = (0.0, 1e-9, 1e-6, 1e-3, 1e-2)
"""Parts of μ² left unspent, tried in turn, for the comparison's slack, which only many rounds make felt."""


@overload
def resolve(draft: Draft, treaty: Treaty, treaty_digest: str, *, now: datetime | None = None) -> Study: ...
@overload
def resolve(
    draft: AnyDraft, treaty: Treaty, treaty_digest: str, *, now: datetime | None = None
) -> AnyStudy: ...
def resolve(draft: AnyDraft, treaty: Treaty, treaty_digest: str, *, now: datetime | None = None) -> AnyStudy:
    """Fit a draft to a treaty: choose scale and noise so that the study costs at most the draft's ε.

    Raises:
        InputError: the sum would not fit the modulus. Refused: see `check_against`.
    """
    mode = draft.privacy.mode
    mode.require(treaty)
    mu2 = epsilon_to_mu(draft.privacy.epsilon, draft.privacy.delta) ** 2
    for margin in MARGINS:
        spend, moment = mu2 * (1 - margin), now or datetime.now(UTC)
        study: AnyStudy = (
            _fitted_count(draft, treaty, treaty_digest, spend, moment)
            if isinstance(draft, CountDraft)
            else _fitted(draft, treaty, treaty_digest, spend, moment)
        )
        if price(study, treaty) <= study.privacy.epsilon:
            break
    check_against(study, treaty, treaty_digest)
    return study


def shares(draft: Draft) -> dict[Task, float]:
    """The part of μ² that one round of each task spends; a task the study has no round of counts as if it had all.

    Evaluation, statistics and looks take what the draft says of the whole, curvature its share of the rest,
    the training rounds what is left, in equal parts.

    Raises:
        InputError: nothing is left to train with.
    """
    training, tasks = draft.training, draft.tasks
    evaluation = draft.privacy.evaluation_share
    statistics = draft.scaling.share if "statistics" in tasks else 0.0
    stopping = training.early_stopping
    looks = stopping.share if stopping is not None else 0.0
    rest = 1 - evaluation - statistics - looks
    if rest <= 0:
        raise InputError(
            "the shares of μ² for evaluation, scaling and early stopping leave nothing to train with"
        )
    curvature = training.curvature_share if "curvature" in tasks else 0.0
    return {
        "statistics": statistics or 1.0,
        "curvature": rest * curvature or 1.0,
        "train": rest * (1 - curvature) / training.rounds,
        "validate": looks / max(tasks.count("validate"), 1) or 1.0,
        "evaluate": evaluation,
    }


def _fitted(draft: Draft, treaty: Treaty, treaty_digest: str, mu2: float, now: datetime) -> Study:
    """The draft with the noise that its shares of `mu2` ask for."""
    mode, noise = draft.privacy.mode, {}
    for task, part in shares(draft).items():
        finest = 20 if task in ("curvature", "train") else 8
        noise[f"scale_bits_{task}"], noise[f"sigma_{task}"] = _noise(
            treaty, shape_of(draft, task), mode, mu2 * part, finest
        )
    plan: dict[str, Any] = {name: getattr(draft, name) for name in Plan.model_fields}
    return Study(
        **plan,
        treaty=treaty_digest,
        created=now.isoformat(timespec="seconds"),
        nonce=secrets.token_hex(16),
        privacy=Privacy(
            mode=mode,
            epsilon=draft.privacy.epsilon,
            delta=draft.privacy.delta,
            evaluation_share=draft.privacy.evaluation_share,
            **noise,
        ),
    )


def _fitted_count(
    draft: CountDraft, treaty: Treaty, treaty_digest: str, mu2: float, now: datetime
) -> CountStudy:
    """The same for a counting study: all of `mu2` is for its one sum. k is the treaty's unless the draft has one."""
    own = draft.privacy
    finest = 8 if draft.count.of is None else 12  # a quantity is rounded at the scale, a count is not
    bits, sigma = _noise(treaty, draft.shape, own.mode, mu2, finest)
    return CountStudy(
        **{name: getattr(draft, name) for name in CountPlan.model_fields},
        treaty=treaty_digest,
        created=now.isoformat(timespec="seconds"),
        nonce=secrets.token_hex(16),
        k=treaty.min_group if draft.k is None else draft.k,
        privacy=CountPrivacy(
            mode=own.mode, epsilon=own.epsilon, delta=own.delta, scale_bits_count=bits, sigma_count=sigma
        ),
    )


def _noise(treaty: Treaty, shape: Shape, mode: Mode, mu2: float, finest: int) -> tuple[int, int]:
    """A fixed-point scale (bits), and the σ of a noise whose mu² is at most `mu2` at it.

    The finest scale in the narrowest modulus in which whole numbers ask for at most 1 % more noise than
    real ones would; if there is none, the finest scale that fits at all.
    """
    m = treaty.overlap.max_partners_per_customer
    least = math.sqrt(mu2 * mode.shares(treaty.threshold, treaty))
    for modulus in WIDTHS:
        for bits in range(finest, 1, -1):
            # Never under 4: below, the sum of shares is not as good as one discrete Gaussian.
            sensitivity = mode.sensitivity(shape.sensitivity(bits), m)
            sigma = max(4, math.ceil(sensitivity / least))
            while mode.event(sensitivity, sigma, shape.dimension, treaty.threshold, treaty).mu ** 2 > mu2:
                sigma += 1  # whole numbers ask for a little more than real ones
            try:
                fits = ring_for(treaty, shape, mode, bits, sigma).bits <= modulus
            except InputError:
                continue
            if fits:
                real = mode.sensitivity(shape.bound * 2.0**bits, m) / least
                if sigma <= (1 + EXTRA_NOISE) * real or modulus == WIDTHS[-1]:
                    return bits, sigma
                break  # a coarser scale asks for more
    raise InputError(
        f"the sum over {len(treaty.parties)} silos of up to {treaty.max_cohort} customers does not fit the modulus"
        f" 2^{WIDTHS[-1]}",
        remedy="lower training.clip, or max_cohort in the treaty",
    )
