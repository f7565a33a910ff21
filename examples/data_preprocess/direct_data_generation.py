"""Write training parquet for direct ranking from Ranking-bench, or from a directory of its layout.

python examples/data_preprocess/direct_data_generation.py [--source PATH_OR_HUB_ID] [--local_dir data/direct_ranking]
"""

from r1ranker.data.generate import main
from r1ranker.errors import exit_on_user_error

if __name__ == "__main__":
    exit_on_user_error(lambda: main("direct"))
