"""What the evaluation measures, part by part; `sbp_ray.stages.eval` puts the parts together on the cluster."""
