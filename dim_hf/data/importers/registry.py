"""The layouts that can be imported, by name."""

from dim_hf.data.importers.cases import Layout
from dim_hf.data.importers.decathlon import MSD, NNUNET
from dim_hf.data.importers.dicom import DICOM
from dim_hf.data.importers.folders_layout import FOLDERS
from dim_hf.data.importers.fundus import DRISHTI_GS1, RIMONE_DL
from dim_hf.data.importers.h5 import SSL4MIS_H5
from dim_hf.data.importers.midss import MIDSS_FUNDUS, MIDSS_PROSTATE
from dim_hf.data.importers.volume_folders import PROMISE12, SAML

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        FOLDERS, MIDSS_FUNDUS, MIDSS_PROSTATE, DRISHTI_GS1, RIMONE_DL, SAML, PROMISE12, NNUNET, MSD, SSL4MIS_H5, DICOM,
    )
}  # fmt: skip
