"""The answer that a completion states, as everything that scores it reads it.

The reader stands in `data.answers`: a row's gold answer and a teacher's are read by the same rules.
"""

from ..data.answers.reader import Extracted as Extracted
from ..data.answers.reader import extract as extract
from ..data.answers.reader import extract_answer as extract_answer
from ..data.answers.reader import normalise as normalise
from ..data.answers.reader import same_answer as same_answer
