"""The endpoint's page of metrics: which numbers of Ray's agents are on it, and under which names."""

from prometheus_client.parser import text_string_to_metric_families

from sbp_ray.engine.metrics_page import joined

ENGINE = """\
# HELP ray_vllm_num_requests_running Running.
# TYPE ray_vllm_num_requests_running gauge
ray_vllm_num_requests_running{ReplicaId="a"} 3.0
# HELP ray_vllm_time_to_first_token_seconds First token.
# TYPE ray_vllm_time_to_first_token_seconds histogram
ray_vllm_time_to_first_token_seconds_bucket{le="0.5"} 1.0
ray_vllm_time_to_first_token_seconds_bucket{le="+Inf"} 2.0
ray_vllm_time_to_first_token_seconds_count 2.0
ray_vllm_time_to_first_token_seconds_sum 1.5
# HELP ray_object_store_memory Not for here.
# TYPE ray_object_store_memory gauge
ray_object_store_memory 7.0
"""
OTHER_NODE = """\
# HELP ray_vllm_num_requests_running Running.
# TYPE ray_vllm_num_requests_running gauge
ray_vllm_num_requests_running{ReplicaId="b"} 4.0
# HELP ray_sbp_tokens_total Tokens.
# TYPE ray_sbp_tokens_total counter
ray_sbp_tokens_total{stage="synthesize"} 5.0
# HELP ray_serve_num_http_requests_total Requests.
# TYPE ray_serve_num_http_requests_total counter
ray_serve_num_http_requests_total{status_code="200"} 6.0
"""


def test_the_engines_numbers_have_vllms_names_and_those_of_all_nodes_are_one_family() -> None:
    page = joined([ENGINE, OTHER_NODE])
    assert page.count("# TYPE vllm:num_requests_running gauge") == 1
    families = {family.name: family for family in text_string_to_metric_families(page)}
    running = families["vllm:num_requests_running"].samples
    assert {(sample.labels["ReplicaId"], sample.value) for sample in running} == {("a", 3), ("b", 4)}
    first = {sample.name: sample.value for sample in families["vllm:time_to_first_token_seconds"].samples}
    assert first["vllm:time_to_first_token_seconds_count"] == 2
    assert families["vllm:time_to_first_token_seconds"].type == "histogram"


def test_serves_and_the_pipelines_numbers_are_there_and_those_of_ray_itself_are_not() -> None:
    page = joined([ENGINE, OTHER_NODE])
    assert 'ray_sbp_tokens_total{stage="synthesize"} 5.0' in page
    assert 'ray_serve_num_http_requests_total{status_code="200"} 6.0' in page
    assert "ray_object_store" not in page
