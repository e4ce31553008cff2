"""Volumes of NIfTI, MetaImage, NRRD and DICOM, whole and in slices, in millimeters of the patient."""
