"""Writers of the layouts of brain MR data sets, small and exact, for the tests."""

from pathlib import Path

import numpy as np

from neurodiff.core.volume import Volume


def scan(path: Path, value: float = 1.0) -> Path:
    """A file of 2 x 2 x 2 voxels that can be told apart by its value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Volume(np.full((1, 2, 2, 2), value, np.float32), np.eye(4)).save(path)
    return path


def text(path: Path, lines: str) -> Path:
    """A table whose columns are set apart by blanks, written as CSV or TSV."""
    separator = "\t" if path.suffix == ".tsv" else ","
    rows = [separator.join(line.split()) for line in lines.strip().splitlines()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def bids(root: Path) -> Path:
    """ADNI by Clinica: three people, one with three visits, one with two runs of a session."""
    first = "sub-ADNI002S0295"
    for session in ("ses-M000", "ses-M006", "ses-M024"):
        scan(root / first / session / "anat" / f"{first}_{session}_T1w.nii.gz")
    for run, value in ((2, 2.0), (1, 1.0), (10, 10.0)):
        second = "sub-ADNI011S0002"
        scan(root / second / "ses-M000/anat" / f"{second}_ses-M000_run-{run}_T1w.nii.gz", value)
    scan(root / "sub-ADNI011S0003/ses-M000/anat/sub-ADNI011S0003_ses-M000_T1w.nii")
    scan(root / "sub-ADNI011S0003/ses-M000/anat/sub-ADNI011S0003_ses-M000_T2w.nii.gz")
    scan(root / "sub-ADNI011S0003/ses-M000/pet/sub-ADNI011S0003_ses-M000_pet.nii.gz")
    # a file that was put into the folder of somebody else
    scan(root / "sub-ADNI011S0003/ses-M000/anat/sub-ADNI099S9999_ses-M000_T1w.nii.gz")
    scan(root / f"derivatives/x/{first}/ses-M000/anat/{first}_ses-M000_T1w.nii.gz")
    text(root / "participants.tsv", """
        participant_id  age_bl  sex  diagnosis_sc  site
        sub-ADNI002S0295  84.8  M  CN  002
        sub-ADNI011S0002  74.3  F  n/a  011
        sub-ADNI011S0003  n/a  F  AD  011
    """)  # fmt: skip
    text(root / first / f"{first}_sessions.tsv", """
        session_id  diagnosis  age
        ses-M000  CN  84.8
        ses-M006  MCI  85.3
        ses-M24  Dementia  n/a
    """)  # fmt: skip
    return root


def caps(root: Path) -> Path:
    for session in ("ses-M000", "ses-M012"):
        folder = root / "subjects/sub-01" / session / "t1_linear"
        stem = f"sub-01_{session}_space-MNI152NLin2009cSym"
        scan(folder / f"{stem}_desc-Crop_res-1x1x1_T1w.nii.gz", 2.0)
    scan(folder / f"{stem}_res-1x1x1_T1w.nii.gz", 1.0)
    text(root / "subjects/notes.tsv", "a b")
    return root


def oasis1(root: Path) -> Path:
    import nibabel

    for disc, name in ((1, "OAS1_0001_MR1"), (1, "OAS1_0061_MR1"), (2, "OAS1_0061_MR2")):
        folder = root / f"disc{disc}" / name / "PROCESSED/MPRAGE/T88_111"
        folder.mkdir(parents=True)
        for kind, value in (("t88_gfc", 1), ("t88_masked_gfc", 2)):
            data = np.full((2, 2, 2), value, np.int16)
            path = folder / f"{name}_mpr_n4_anon_111_{kind}.img"
            nibabel.Spm2AnalyzeImage(data, np.eye(4)).to_filename(path)
    (root / "disc2/OAS1_0099_MR1").mkdir()
    text(root / "oasis_cross-sectional.csv", """
        ID  M/F  Hand  Age  CDR  Delay
        OAS1_0001_MR1  F  R  74  0  N/A
        OAS1_0061_MR1  F  R  20  N/A  N/A
        OAS1_0061_MR2  F  R  20  N/A  26
    """)  # fmt: skip
    return root


def oasis2(root: Path) -> Path:
    import nibabel

    for name in ("OAS2_0001_MR1", "OAS2_0001_MR2"):
        for number in (1, 2):
            path = root / "part1" / name / "RAW" / f"mpr-{number}.nifti.img"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Pair(np.full((2, 2, 2), number, np.int16), np.eye(4)).to_filename(path)
    (root / "oasis_longitudinal.csv").write_text(
        "Subject ID,MRI ID,Group,Visit,MR Delay,M/F,Hand,Age,CDR\n"
        "OAS2_0001,OAS2_0001_MR1,Converted,1,0,M,R,87,0\n"
        "OAS2_0001,OAS2_0001_MR2,Converted,2,457,M,R,88,0.5\n"
    )
    return root


def oasis3(root: Path) -> Path:
    for days in ("0000", "0757"):
        for run in (1, 2):
            folder = root / f"OAS30001_MR_d{days}" / f"anat{run}"
            scan(folder / f"sub-OAS30001_ses-d{days}_run-0{run}_T1w.nii.gz")
    text(root / "demographics.csv", """
        OASISID  AgeatEntry  GENDER
        OAS30001  65.15  2
    """)  # fmt: skip
    text(root / "OASIS3_UDSb4_cdr.csv", """
        OASISID  OASIS_session_label  CDRTOT
        OAS30001  OAS30001_UDSb4_d0010  0
        OAS30001  OAS30001_UDSb4_d0700  0.5
        OAS30001  OAS30001_UDSb4_d3000  1
    """)  # fmt: skip
    return root


def ixi(root: Path) -> Path:
    for name in ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI013-IOP-1212", "IXI014-HH-1236"):
        scan(root / "IXI-T1" / f"{name}-T1.nii.gz")
    (root / "IXI.csv").write_text(
        'IXI_ID,"SEX_ID (1=m, 2=f)",AGE\n2,2,35.80\n12,1,38.78\n13,1,46.71\n13,1,48.0\n'
    )
    return root


def adni(root: Path) -> Path:
    for subject, date, uid in (
        ("002_S_0295", "2006-04-18_08_20_30.0", "I13721"),
        ("002_S_0295", "2006-11-02_08_16_44.0", "I28560"),
        ("011_S_0003", "2005-09-01_10_00_00.0", "I32237"),
    ):
        folder = root / "ADNI" / subject / "MP-RAGE" / date / uid
        scan(folder / f"ADNI_{subject}_MR_MP-RAGE_{uid}.nii")
    dicom = root / "ADNI/011_S_0003/MP-RAGE/2006-03-13_11_00_00.0/I32238"
    dicom.mkdir(parents=True)
    (dicom / "a.dcm").write_bytes(b"DICM")
    (root / "ida.csv").write_text(
        '"Image Data ID","Subject","Group","Sex","Age","Visit","Acq Date"\n'
        '"I13721","002_S_0295","CN","M","84","sc","4/18/2006"\n'
        '"I28560","002_S_0295","CN","M","85","m06","11/02/2006"\n'
    )
    (root / "ADNIMERGE.csv").write_text(
        "RID,PTID,VISCODE,EXAMDATE,DX_bl,DX,AGE,PTGENDER\n"
        "3,011_S_0003,bl,2005-09-12,AD,Dementia,81.3,Male\n"
        "3,011_S_0003,m06,2006-03-13,AD,Dementia,81.3,Male\n"
    )
    return root


LAYOUT_WRITERS = {
    "bids": bids, "caps": caps, "oasis1": oasis1, "oasis2": oasis2, "oasis3": oasis3, "ixi": ixi,
    "adni": adni,
}  # fmt: skip
