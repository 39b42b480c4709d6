"""The synthesizer as a service: the only package that knows vLLM and ray.serve.llm.

bodies        HTTP requests and answers: their fields, and what is said of a wrong one.
messages      what travels inside the cluster. Both are light to import.
planning      from a request to prompts and sampling, or to a refusal. `tokenization` tells its tokens alone.
access        bearer keys.
admission     how much a replica takes on.
replica       the deployment of the engines; `deltas` joins the streams of a request's samples.
start_check   whether it computes what was trained.
seeded        how an engine on a CPU samples tokens.
ingress       the deployment in front: HTTP. `http_limits` is its middleware, `answers` forms its bodies, `streams`
              its events, `metrics_page` what is counted.
health        whether there are replicas, and whether an engine stands still.
deploy        from engine settings to an application.
router        which replica gets a request.
running       starting, finding and stopping one for a batch job.
"""
