"""Arguments that cannot be: usage, one line that names what is wrong, and status 2, before anything is read."""

from __future__ import annotations

import pytest

WRONG = [
    ('train.py', '', 'required: config'),
    ('train.py', 'a.py --sede 3 --no-such-flag', 'unrecognized arguments: --sede 3 --no-such-flag'),
    ('test.py', 'a.py', 'required: checkpoint'),
    ('test.py', 'a.py b.pth --out predictions.json', '--out: expected a name that'),
    ('model_converters/upcycle.py', 'a.py b.pth out.pth --noise -1', '--noise: expected a number >= 0'),
    ('model_converters/densify.py', 'a.py b.pth out.pth --most-used --expert 1', '--expert: not allowed with'),
    ('analysis_tools/compare_runs.py', '', 'required: NAME=RUN'),
    ('analysis_tools/compare_runs.py', 'dense', 'dense: expected NAME=WORK_DIR or NAME=CONFIG:CHECKPOINT'),
    ('analysis_tools/compare_runs.py', 'a=a.py:https://host/b.pth --out x.txt', '--out: expected a name that'),
    ('analysis_tools/moe_cost.py', '', 'required: config'),
    ('analysis_tools/moe_cost.py', 'x.py --shape 64', '--shape: expected 2 arguments'),
    ('analysis_tools/moe_cost.py', 'x.py --shape 4 64', '--shape 4 64: expected at least 8 pixels'),
    ('analysis_tools/moe_cost.py', 'x.py --json x', '--json: expected a name that ends in .json'),
    ('analysis_tools/router_health.py', 'a.py b.pth --limit 0', '--limit: expected an integer >= 1'),
    ('analysis_tools/router_health.py', 'a.py b.pth --living-share 1.5', '--living-share: expected a number >= 0'),
    ('analysis_tools/router_health.py', 'a.py b.pth --max-load-ratio 0.5', '--max-load-ratio: expected a number >= 1'),
    ('analysis_tools/router_health.py', 'a.py b.pth --min-living 0', '--min-living: expected an integer >= 1'),
    ('analysis_tools/router_health.py', 'a.py b.pth --no-such-flag', 'unrecognized arguments: --no-such-flag'),
    ('analysis_tools/size_specialization.py', 'a.py b.pth --permutations 5', '--permutations: expected an integer'),
    ('analysis_tools/size_specialization.py', 'a.py b.pth --area-ranges 96 32', 'the smaller first'),
    ('analysis_tools/size_specialization.py', 'a.py b.pth --limit 0', '--limit: expected an integer >= 1, got 0'),
    ('analysis_tools/uncertainty.py', 'a.py b.pth --corruption mist 3', '--corruption mist 3: expected one of'),
    ('analysis_tools/uncertainty.py', 'a.py b.pth --corruption fog 6', '--corruption fog 6: expected one of'),
    ('analysis_tools/vis_routing.py', 'a.py b.pth', 'give either an image file or --image-id'),
    ('analysis_tools/vis_routing.py', 'a.py b.pth c.png --image-id 1', 'give either an image file or --image-id'),
    ('analysis_tools/vis_routing.py', 'a.py b.pth c.png --out a.txt', '--out: expected a name that'),
    ('analysis_tools/vis_routing.py', 'a.py b.pth --image-id 1 --ann-file a.json', '--ann-file goes with an image'),
]


@pytest.mark.parametrize(('script', 'arguments', 'words'), WRONG)
def test_wrong_arguments_end_with_usage_and_status_2(tool, capsys, script, arguments, words):
    with pytest.raises(SystemExit) as end:
        tool(script).main(arguments.split())
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith('usage') and words in err.splitlines()[-1]
