"How far radiologists agree: the committed tables are those that the labels give."
import pytest
from helpers import DATA, ROOT

from cxr_stn.runs import Run
from cxr_stn.study.readers import label_table, reader_table, ReadersParams


@pytest.mark.data("nih14-expert-labels", "nih14-sample")
def test_the_committed_tables_are_made_again_to_the_byte(tmp_path):
    "The cheapest experiment of results/PROTOCOL.md; it reads no image"
    experts, metadata = DATA / "nih14-expert-labels", DATA / "nih14-sample"
    run = Run(str(tmp_path / "run"), ReadersParams(expert_dir=str(experts), data_dir=str(metadata)))
    run.write_table("readers", reader_table(experts))
    run.write_table("reports", label_table(experts, metadata))
    for name in ("readers.csv", "reports.csv"):
        assert (run.path / name).read_bytes() == (ROOT / "results" / "real" / "readers" / name).read_bytes()
