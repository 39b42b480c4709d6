"""A grid of arms, seeds and synthetic shares: what SBP gains, at what cost

python jobs/experiment.py --config configs/experiment-nano.yaml
"""

from sbp_ray.experiment.main import main

if __name__ == "__main__":
    main()
