"""The synthesizer as a service: the only package that knows vLLM and ray.serve.llm.

messages   what travels: HTTP bodies, and single draws inside the cluster. Light to import.
service    the Serve deployments: engine replicas and the HTTP ingress.
deploy     from engine settings to an application; starting, finding and stopping one for a batch job.
"""
