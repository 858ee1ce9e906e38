"""What a treaty permits of a study; the server asks at submission, and every node before it takes part."""

from __future__ import annotations

from ..compliance.gate import require_k
from ..compliance.treaty import Treaty
from ..documents import Envelope
from ..errors import InputError, Refused
from .counting import CountStudy
from .pricing import price
from .study import KIND, AnyStudy, parse


def check_against(study: AnyStudy, treaty: Treaty, treaty_digest: str) -> None:
    """Raise unless the treaty permits this study; every node and the server run it.

    Raises:
        Refused: another treaty, unknown author, purpose not permitted, ε over the cap or over what
            the study itself declares, a mode not permitted, noise too small, a sum that could wrap, or a k under
            the treaty's.
    """
    if study.treaty != treaty_digest:
        raise Refused(
            "OTHER_TREATY", f"the study is under treaty {study.treaty[:12]}, not {treaty_digest[:12]}"
        )
    treaty.scientist(study.author)
    if isinstance(study, CountStudy):
        require_k(study.k, treaty.min_group, len(treaty.parties) * treaty.max_cohort, "the study")
    study.privacy.mode.require(treaty)
    terms = treaty.terms(study.purpose)
    if study.privacy.delta > terms.delta:
        raise Refused("DELTA_OVER_CAP", f"δ = {study.privacy.delta:g} is over the treaty's {terms.delta:g}")
    if study.privacy.epsilon > terms.epsilon:
        raise Refused(
            "EPSILON_OVER_CAP",
            f"ε = {study.privacy.epsilon:g} is over the treaty's {terms.epsilon:g} for {study.purpose}",
            remedy="ask for less: a smaller epsilon means more noise",
        )
    try:
        cost = price(study, treaty)
    except InputError as error:
        raise Refused("SUM_COULD_WRAP", error.message, remedy=error.remedy) from error
    if not cost <= study.privacy.epsilon:
        raise Refused(
            "NOISE_TOO_SMALL",
            f"the study's noise costs ε = {cost:.4f}, more than the {study.privacy.epsilon:g} it declares",
        )


def verify(envelope: Envelope, treaty: Treaty, treaty_digest: str) -> AnyStudy:
    """The study in an envelope: signed by its author and permitted by the treaty.

    Raises:
        InputError: malformed. VerificationError: bad signature. Refused: see `check_against`.
    """
    study = parse(envelope)
    envelope.check(KIND, study.author, treaty.scientist(study.author).signing_key)
    check_against(study, treaty, treaty_digest)
    return study
