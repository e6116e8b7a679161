"""docs/models.md tells of the models in models.py, and every remedy in it leads to one that trains."""

from tests.export.models import MODELS
from tests.export.models_page import DOCUMENT, rows


def test_the_document_tells_of_every_model_and_of_what_is_expected_of_it() -> None:
    told = [(name, state) for name, state, *_ in rows(DOCUMENT.read_text())]
    assert told == [(m.name, "refused" if m.instead else "trains") for m in MODELS]


def test_every_remedy_leads_to_a_model_that_trains() -> None:
    trains = {m.name for m in MODELS if m.instead is None}
    assert {m.instead for m in MODELS if m.instead} <= trains
