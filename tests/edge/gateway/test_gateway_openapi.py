"""The OpenAPI document against the models that it is made from."""

from ecd.edge.gateway.errors import INTERNAL, STATUS
from ecd.edge.gateway.openapi import document
from ecd.edge.gateway.schema import ChatRequest


def test_every_parameter_is_in_it_and_no_other_is_let_through() -> None:
    schemas = document(with_keys=False)["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"].keys() == ChatRequest.model_fields.keys()
    assert schemas["ChatRequest"]["additionalProperties"] is False


def test_an_answer_may_fail_with_every_status_that_an_error_has() -> None:
    paths = document(with_keys=False)["paths"]
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert {str(status) for status in (*STATUS.values(), INTERNAL)} <= paths[path]["post"][
            "responses"
        ].keys()


def test_keys_are_in_it_where_they_are_wanted() -> None:
    described = document(with_keys=True)
    assert "401" in described["paths"]["/v1/models"]["get"]["responses"]
    assert described["paths"]["/health"]["get"]["security"] == []
    assert "401" not in document(with_keys=False)["paths"]["/v1/models"]["get"]["responses"]
