"""The generated pages are current, and what the documents show is true."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATE = runpy.run_path(str(ROOT / "docs/generate.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", ["config", "cli"])
def test_generated_page_is_current(page):
    assert (ROOT / f"docs/{page}.md").read_text(encoding="utf-8") == GENERATE[f"render_{page}"](), "run: make docs"


def test_every_field_is_described():
    text = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.split(" | ")[-1].strip(" |") == ""] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_job_shown_is_valid(tmp_path):
    """Code blocks that name a job are whole job files."""
    from launcher.job.load import read_document
    from launcher.services.job_model import check_job

    shown = 0
    for page in PAGES:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            if block.startswith("name:"):
                (tmp_path / "job.yaml").write_text(block, encoding="utf-8")
                check_job(read_document(tmp_path / "job.yaml"))
                shown += 1
    assert shown


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_example_job_is_valid(path):
    from launcher.job.load import read_document
    from launcher.services.job_model import check_job

    document = read_document(path)
    if "name" in document.values:
        check_job(document)


@pytest.mark.parametrize("name", ["python_kind.py", "age.py"])
def test_what_extending_shows_is_the_example(name):
    text = (ROOT / "examples/plugin/launch_plugin" / name).read_text(encoding="utf-8").rstrip()
    assert f"```python\n{text}\n```" in (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 45


def test_the_slurm_cluster_that_is_shown_is_that_of_the_golden_file():
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    profile = (ROOT / "tests/golden/slurm-gres.profile.yaml").read_text(encoding="utf-8")
    assert "".join(f"  {line}\n" for line in profile.splitlines() if not line.startswith("#")) in page
    assert (ROOT / "tests/golden/slurm-gres.job.yaml").read_text(encoding="utf-8") in page


def promises(page):
    """Rows of the last table of a page: the promise, and the cells that prove it."""
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    lines = text.partition("## What is promised")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in rows if row[0] != "promise"]


@pytest.mark.parametrize(("page", "columns"), [("clusters", 4), ("data", 2)])
def test_every_promise_names_its_tests_or_says_why_not(page, columns):
    cell_form = r"`[\w/]+::test_\w+`|^same|^not possible: \w+|^not here: \w+"
    assert len(promises(page)) > 40
    for row in promises(page):
        assert len(row) == columns, row
        assert all(re.search(cell_form, cell) for cell in row[1:]), row


@pytest.mark.parametrize("page", ["clusters", "data", "chat"])
def test_every_test_that_proves_a_promise_is_there(page):
    cells = [cell for row in promises(page) for cell in row[1:]]
    for named in {found for cell in cells for found in re.findall(r"`([\w/]+::test_\w+)`", cell)}:
        module, _, function = named.partition("::")
        path = ROOT / "tests" / f"{module}.py"
        assert path.exists(), named
        assert f"def {function}(" in path.read_text(encoding="utf-8"), named


def families():
    """Rows of the table of families: the family, and a cell for each thing that it can do."""
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    lines = text.partition("## What each family can do")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in rows if row[0] != "family"]


def test_what_each_family_can_do_names_its_tests():
    assert len(families()) >= 12
    for row in families():
        assert len(row) == 7, row
        assert all(re.fullmatch(r"`[\w/]+::test_\w+`|-", cell) for cell in row[1:]), row


def test_nothing_is_missing_of_the_families_that_the_project_is_named_after():
    text = {"InternLM v1", "InternLM2", "InternLM2.5", "InternLM3"}
    rows = {row[0]: row[1:] for row in families()}
    assert rows.keys() >= text | {"XComposer2"}
    assert [name for name in text if "-" in rows[name][:5]] == []
    assert "-" not in rows["XComposer2"]


def test_every_test_that_the_page_on_models_names_is_there():
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    for module, function in set(re.findall(r"`([\w/]+)::(test_\w+)`", text)):
        path = ROOT / "tests" / f"{module}.py"
        assert path.exists(), module
        assert f"def {function}(" in path.read_text(encoding="utf-8"), function


def test_every_format_and_template_is_in_the_page_on_data():
    from trainer.config.job import FORMATS, TemplateName

    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    assert [name for name in (*FORMATS, *TemplateName.__args__) if f"| `{name}` |" not in text] == []
