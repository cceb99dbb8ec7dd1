"""Messages of a run and its progress bar share a terminal."""

import logging
import re
import sys

from tqdm import tqdm

from flowrl.cli.console import show_progress_messages


def test_a_message_has_a_line_of_its_own_while_a_bar_is_drawn(capsys):
    show_progress_messages()
    with tqdm(total=2, file=sys.stderr) as bar:
        logging.getLogger("flowrl.train.run").info("the gate is open")
        bar.update()
    printed = capsys.readouterr().err
    assert "the gate is open" in [line.strip() for line in re.split(r"[\r\n]", printed)]
    assert " " * 20 not in printed, "a bar is not wiped with blanks in a file"
