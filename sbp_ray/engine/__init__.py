"""The synthesizer as a service: the only package that knows vLLM and ray.serve.llm.

messages      what travels: HTTP bodies, and draws inside the cluster. Light to import.
access        bearer keys.
admission     how much a replica takes on.
replica       the deployment of the engines; `pieces` joins the streams of a request's samples.
seeded        how an engine on a CPU draws tokens.
ingress       the deployment in front: HTTP. `http_limits` is its middleware, `answers` forms its bodies, `asking` asks
              the replicas, `health` tells whether there are any.
deploy        from engine settings to an application.
routing       which replica gets a request. `watch` tells an engine that stands still.
running       starting, finding and stopping one for a batch job.
"""
