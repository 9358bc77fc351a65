"""The formats of `--format` that are text, each in a module of its own."""

import io

from step_cli.reports import Report, VerifyReport


def text(report: Report, format: str, *, verbose: bool) -> str:
    """The report in ``format``; only `verify-nm` has others than table and json."""
    if format == "table" or not isinstance(report, VerifyReport):
        from step_cli.render.draw import draw

        out = io.StringIO()
        draw(report, out, verbose=verbose)
        return out.getvalue()
    if format == "jsonl":
        from step_cli.render import jsonl

        return jsonl.text(report)
    if format == "markdown":
        from step_cli.render import markdown

        return markdown.text(report, verbose=verbose)
    if format == "junit":
        from step_cli.render import junit

        return junit.text(report)
    if format == "sarif":
        from step_cli.render import sarif

        return sarif.text(report)
    from step_cli.render import github

    return github.text(report)
