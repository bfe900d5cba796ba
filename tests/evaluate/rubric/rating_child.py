"""Serves the rating page as the command does, in a process of its own that can be killed: argv is folder and rater."""

import asyncio
import sys
from pathlib import Path

from sekisho.evaluate.rubric.folder import RubricFolder
from sekisho.evaluate.rubric.rating_page import serve
from sekisho.evaluate.rubric.sitting import Sitting

if __name__ == "__main__":
    folder, rater = RubricFolder(Path(sys.argv[1])), sys.argv[2]
    with folder.at_work(rater):
        asyncio.run(serve(Sitting(folder, rater), lambda link: print(link, flush=True)))
