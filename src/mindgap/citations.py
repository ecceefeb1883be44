"""Sources of every part, as BibTeX; `mindgap cite` prints those a run used."""

from __future__ import annotations

from collections.abc import Iterable

BIBTEX: dict[str, str] = {
    "mindgap": """@article{liu2024mindgap,
  title   = {Mind the Gap: Promoting Missing Modality Brain Tumor Segmentation with Alignment},
  author  = {Liu, Tianyi and Tan, Zhaorui and Jiang, Haochuan and Huang, Kaizhu and Yang, Xi},
  journal = {arXiv preprint arXiv:2409.19366},
  year    = {2024}
}""",
    "protokd": """@inproceedings{wang2023protokd,
  title     = {Prototype Knowledge Distillation for Medical Segmentation with Missing Modality},
  author    = {Wang, Shuai and Yan, Zipei and Zhang, Daoan and Wei, Haining and Li, Zhongsen and Li, Rui},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year      = {2023}
}""",
    "pmkl": """@article{chen2022pmkl,
  title   = {Learning With Privileged Multimodal Knowledge for Unimodal Segmentation},
  author  = {Chen, Cheng and Dou, Qi and Jin, Yueming and Liu, Quande and Heng, Pheng Ann},
  journal = {IEEE Transactions on Medical Imaging},
  volume  = {41},
  number  = {3},
  pages   = {621--632},
  year    = {2022}
}""",
    "kdnet": """@inproceedings{hu2020kdnet,
  title     = {Knowledge Distillation from Multi-modal to Mono-modal Segmentation Networks},
  author    = {Hu, Minhao and Maillard, Matthis and Zhang, Ya and Ciceri, Tommaso and La Barbera, Giammarco and
               Bloch, Isabelle and Gori, Pietro},
  booktitle = {Medical Image Computing and Computer Assisted Intervention (MICCAI)},
  year      = {2020}
}""",
    "smunet": """@inproceedings{azad2022smunet,
  title     = {{SMU-Net}: Style matching {U-Net} for brain tumor segmentation with missing modalities},
  author    = {Azad, Reza and Khosravi, Nika and Merhof, Dorit},
  booktitle = {Medical Imaging with Deep Learning (MIDL)},
  year      = {2022}
}""",
    "hemis": """@inproceedings{havaei2016hemis,
  title     = {{HeMIS}: Hetero-Modal Image Segmentation},
  author    = {Havaei, Mohammad and Guizard, Nicolas and Chapados, Nicolas and Bengio, Yoshua},
  booktitle = {Medical Image Computing and Computer Assisted Intervention (MICCAI)},
  series    = {Lecture Notes in Computer Science},
  volume    = {9901},
  pages     = {469--477},
  year      = {2016}
}""",
    "nnunet": """@article{isensee2021nnunet,
  title   = {{nnU-Net}: a self-configuring method for deep learning-based biomedical image segmentation},
  author  = {Isensee, Fabian and Jaeger, Paul F. and Kohl, Simon A. A. and Petersen, Jens and
             Maier-Hein, Klaus H.},
  journal = {Nature Methods},
  volume  = {18},
  number  = {2},
  pages   = {203--211},
  year    = {2021}
}""",
    "brats": """@article{menze2015brats,
  title   = {The Multimodal Brain Tumor Image Segmentation Benchmark ({BRATS})},
  author  = {Menze, Bjoern H. and Jakab, Andras and Bauer, Stefan and others},
  journal = {IEEE Transactions on Medical Imaging},
  volume  = {34},
  number  = {10},
  pages   = {1993--2024},
  year    = {2015}
}""",
    "brats-tcga": """@article{bakas2017tcga,
  title   = {Advancing The Cancer Genome Atlas glioma {MRI} collections with expert segmentation labels
             and radiomic features},
  author  = {Bakas, Spyridon and Akbari, Hamed and Sotiras, Aristeidis and others},
  journal = {Scientific Data},
  volume  = {4},
  pages   = {170117},
  year    = {2017}
}""",
    "mni152": """@article{fonov2011mni,
  title   = {Unbiased average age-appropriate atlases for pediatric studies},
  author  = {Fonov, Vladimir and Evans, Alan C. and Botteron, Kelly and Almli, C. Robert and
             McKinstry, Robert C. and Collins, D. Louis},
  journal = {NeuroImage},
  volume  = {54},
  number  = {1},
  pages   = {313--327},
  year    = {2011}
}""",
    "temperature": """@inproceedings{guo2017calibration,
  title     = {On Calibration of Modern Neural Networks},
  author    = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2017}
}""",
    "conformal": """@article{lei2018distribution,
  title   = {Distribution-Free Predictive Inference for Regression},
  author  = {Lei, Jing and G'Sell, Max and Rinaldo, Alessandro and Tibshirani, Ryan J. and Wasserman, Larry},
  journal = {Journal of the American Statistical Association},
  volume  = {113},
  number  = {523},
  pages   = {1094--1111},
  year    = {2018}
}""",
    "monai": """@article{cardoso2022monai,
  title   = {{MONAI}: An open-source framework for deep learning in healthcare},
  author  = {Cardoso, M. Jorge and Li, Wenqi and Brown, Richard and others},
  journal = {arXiv preprint arXiv:2211.02701},
  year    = {2022}
}""",
}


def bibtex(keys: Iterable[str]) -> str:
    """The entries of some keys, each once, in the order given.

    Raises:
        KeyError: A key is unknown.
    """
    return "\n\n".join(BIBTEX[key] for key in dict.fromkeys(keys)) + "\n"
