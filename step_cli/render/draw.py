"""Which report is drawn by what: the others are not even imported."""

from typing import TextIO

from step_cli.reports import Report, VerifyReport


def draw(report: Report, out: TextIO, *, verbose: bool, forge: bool = False) -> None:
    """Write ``report`` to ``out`` as text, coloured on a terminal only.

    With ``forge``, a report that has annotations adds them where a forge reads them.
    """
    if isinstance(report, VerifyReport):
        from step_cli.render import verify_table

        verify_table.draw(report, out, verbose=verbose, forge=forge)
        return
    from step_cli.render import result_tables
    from step_cli.render.tables import console

    result_tables.show(report, console(out), verbose=verbose)
