"""The whole loop: every stage in order, each skipped when it is done

python jobs/pipeline.py --config configs/demo.yaml
"""

import embed
import eval as evaluation  # the jobs lie beside this file, which Python puts first on its path
import ingest
import neighbors
import pair
import pretrain
import synthesize
import tune

from sbp_ray.job import main_pipeline

if __name__ == "__main__":
    main_pipeline(
        {
            "ingest": ingest.run,
            "embed": embed.run,
            "neighbors": neighbors.run,
            "pair": pair.run,
            "pretrain": pretrain.run,
            "tune": tune.run,
            "synthesize": synthesize.run,
            "eval": evaluation.run,
        }
    )
