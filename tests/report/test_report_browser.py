"""The report page in a real browser; skipped where there is none."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report.report_example import add_pictures, make_example

from moe_det.figures import Pictures
from moe_det.report import write_report

WIDTHS = (360, 768, 1280, 1920)
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
# measures the page in frames as wide as a small phone and as a desktop, and leaves the result as the document's text
MEASURE = """
const found = [];
// a cell is cut off where it reaches out of the page, or out of what hides it without scrolling
const isCut = (frame, page, cell) => {
  const box = cell.getBoundingClientRect();
  if (box.width === 0) return false;  // not shown here: the head of a table whose rows are cards
  for (let around = cell.parentElement; around && around !== page.body; around = around.parentElement) {
    const flow = frame.contentWindow.getComputedStyle(around).overflowX;
    const edge = around.getBoundingClientRect();
    const inside = box.left >= edge.left - 1 && box.right <= edge.right + 1;
    if (!inside && ['auto', 'scroll'].includes(flow)) {
      if (around.scrollWidth <= around.clientWidth || around.tabIndex < 0) return true;  // cannot be scrolled to
      return edge.right > frame.contentWindow.innerWidth + 1;
    }
    if (!inside && flow !== 'visible') return true;
  }
  return box.right > frame.contentWindow.innerWidth + 1 || box.left < -1;
};
const determinant = matrix => matrix.a * matrix.d - matrix.b * matrix.c;
const frames = [...document.querySelectorAll('iframe')];
Promise.all(frames.map(frame => new Promise(done => {
  if (frame.contentDocument.readyState === 'complete' && frame.contentDocument.body.childElementCount) done();
  else frame.onload = done;
}))).then(() => {
  for (const frame of frames) {
    const page = frame.contentDocument;
    const drawn = [...page.querySelectorAll('figure, figure svg, figure table, img')];
    const boxes = drawn.map(element => element.getBoundingClientRect());
    found.push({
      width: frame.contentWindow.innerWidth,
      scroll: page.documentElement.scrollWidth,
      boxes: boxes.length,
      invisible: boxes.filter(box => box.width < 20 || box.height < 20).length,
      broken: [...page.images].filter(image => image.naturalWidth === 0).length,
      smallest: Math.min(...[...page.querySelectorAll('svg text')].map(
        text => parseFloat(getComputedStyle(text).fontSize) * Math.sqrt(Math.abs(determinant(text.getScreenCTM()))))),
      ink: frame.contentWindow.getComputedStyle(page.body).color,
      scrolling: [...page.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length,
      cut: [...page.querySelectorAll('th, td')].filter(cell => isCut(frame, page, cell)).map(e => e.textContent.trim()),
      tables: page.querySelectorAll('table').length,
      unlabelled: [...page.querySelectorAll('table.numbers td[data-label]')].filter(cell => {
        const head = cell.closest('table').tHead;
        return head && getComputedStyle(head).display === 'none'
          && frame.contentWindow.getComputedStyle(cell, '::before').content.length < 3;
      }).length,
    });
  }
  document.body.textContent = 'FOUND' + JSON.stringify(found) + 'END';
});
"""


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """Runs a headless browser on a file: its document afterwards and what it logged."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f'no browser found: none of {", ".join(BROWSERS)} is on the PATH')
    profile = tmp_path_factory.mktemp('profile')

    def run(path: Path, *options: str) -> tuple[str, str]:
        # without a sandbox: containers often forbid it, and the page is our own
        flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--enable-logging=stderr']
        flags += ['--no-first-run', '--virtual-time-budget=8000', f'--user-data-dir={profile}', '--dump-dom', *options]
        done = subprocess.run([program, *flags, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, done.stderr

    return run


@pytest.fixture(scope='module')
def report(tmp_path_factory) -> Path:
    """A page with pictures, patches and a layer without levels."""
    folder = tmp_path_factory.mktemp('browser')
    results = make_example(layers=3, experts=3, levels=5, favourites=1, grid=2)
    results['layers'][1]['name'] = 'backbone.' + 'very_long_module_name.' * 6 + 'conv2'
    add_pictures(results, Pictures(folder))
    return write_report(results, folder)


def test_browser_shows_the_page_without_a_complaint(browser, report):
    document, log = browser(report)
    assert 'Does the gate sort by size' in document and '</html>' in document
    complaints = [line for line in log.splitlines() if 'CONSOLE' in line]
    assert complaints == []
    # the same look at a page that must be complained about
    bad = report.with_name('bad.html')
    bad.write_text(report.read_text(encoding='utf-8').replace('</body>', '<script>1</script></body>'), encoding='utf-8')
    _, log = browser(bad)
    assert 'CONSOLE' in log and 'Content Security Policy' in log


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_every_figure_is_visible_on_phone_and_desktop(browser, report, scheme):
    options = ['--blink-settings=preferredColorScheme=0'] if scheme == 'dark' else []
    found = _measured(browser, report, f'frames_{scheme}', WIDTHS, report.read_text(encoding='utf-8'), *options)
    assert [frame['width'] for frame in found] == list(WIDTHS)
    for frame in found:
        assert frame['boxes'] > 60
        assert frame['invisible'] == 0 and frame['broken'] == 0
        assert frame['scroll'] <= frame['width'], 'the page scrolls sideways'
        assert frame['tables'] > 40 and frame['cut'] == [], 'columns are cut off'
        assert frame['unlabelled'] == 0, 'numbers in cards have no label'
        assert frame['smallest'] >= 8, 'text of a chart is too small to read'
        assert frame['ink'] == ('rgb(240, 242, 244)' if scheme == 'dark' else 'rgb(22, 25, 29)')
    assert found[0]['scrolling'] >= 2, 'wide tables scroll by themselves on a phone'


def test_a_cut_column_would_be_noticed(browser, report):
    page = report.read_text(encoding='utf-8').replace('</style>', '.scroll { overflow: hidden !important; }</style>')
    (frame,) = _measured(browser, report, 'frames_cut', (360,), page)
    assert frame['cut'] != []


def test_print_shows_every_column(browser, report):
    # the print rules as they are, on a page as wide as A4 with its margins
    page = report.read_text(encoding='utf-8').replace('@media print', '@media all')
    (frame,) = _measured(browser, report, 'frames_print', (700,), page)
    assert frame['scrolling'] == 0 and frame['cut'] == []


def _measured(browser, report: Path, name: str, widths: tuple[int, ...], page: str, *options: str) -> list[dict]:
    """What the measuring script finds on a page in frames of some widths."""
    # frames, since a window has a least width; their policy is taken out to let the script in
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', page)
    frames = ''.join(
        f'<iframe srcdoc="{html.escape(page)}" width="{width}" height="800" style="border:0"></iframe>'
        for width in widths
    )
    outer = report.with_name(f'{name}.html')
    outer.write_text(f'<!doctype html><meta charset="utf-8"><body>{frames}<script>{MEASURE}</script>', encoding='utf-8')
    document, _ = browser(outer, '--window-size=2000,900', *options)
    return json.loads(html.unescape(re.search('FOUND(.*)END', document)[1]))
