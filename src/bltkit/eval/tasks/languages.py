"""English names of languages by their FLORES+ codes, for prompts. What is not here is called by its code."""

from collections.abc import Mapping

NAMES: Mapping[str, str] = dict(
    line.split(" ", 1)
    for line in """\
ace_Arab Acehnese (Arabic script)
ace_Latn Acehnese
afr_Latn Afrikaans
amh_Ethi Amharic
arb_Arab Arabic
ary_Arab Moroccan Arabic
arz_Arab Egyptian Arabic
asm_Beng Assamese
azj_Latn Azerbaijani
bam_Latn Bambara
ban_Latn Balinese
bel_Cyrl Belarusian
ben_Beng Bengali
bho_Deva Bhojpuri
bjn_Arab Banjar (Arabic script)
bjn_Latn Banjar
bos_Latn Bosnian
bug_Latn Buginese
bul_Cyrl Bulgarian
cat_Latn Catalan
ceb_Latn Cebuano
ces_Latn Czech
ckb_Arab Central Kurdish
crh_Latn Crimean Tatar
cym_Latn Welsh
dan_Latn Danish
deu_Latn German
dik_Latn Southwestern Dinka
dzo_Tibt Dzongkha
ell_Grek Greek
eng_Latn English
epo_Latn Esperanto
est_Latn Estonian
eus_Latn Basque
fin_Latn Finnish
fra_Latn French
fur_Latn Friulian
fuv_Latn Nigerian Fulfulde
gle_Latn Irish
glg_Latn Galician
grn_Latn Guarani
guj_Gujr Gujarati
hat_Latn Haitian Creole
hau_Latn Hausa
heb_Hebr Hebrew
hin_Deva Hindi
hne_Deva Chhattisgarhi
hrv_Latn Croatian
hun_Latn Hungarian
hye_Armn Armenian
ibo_Latn Igbo
ind_Latn Indonesian
isl_Latn Icelandic
ita_Latn Italian
jav_Latn Javanese
jpn_Jpan Japanese
kan_Knda Kannada
kas_Arab Kashmiri (Arabic script)
kas_Deva Kashmiri (Devanagari script)
kat_Geor Georgian
kaz_Cyrl Kazakh
khk_Cyrl Mongolian
khm_Khmr Khmer
kir_Cyrl Kyrgyz
knc_Arab Central Kanuri (Arabic script)
knc_Latn Central Kanuri
kor_Hang Korean
lao_Laoo Lao
lij_Latn Ligurian
lim_Latn Limburgish
lit_Latn Lithuanian
lmo_Latn Lombard
ltg_Latn Latgalian
ltz_Latn Luxembourgish
lug_Latn Ganda
lvs_Latn Latvian
mag_Deva Magahi
mal_Mlym Malayalam
mar_Deva Marathi
mkd_Cyrl Macedonian
mlt_Latn Maltese
mni_Beng Manipuri
mri_Latn Maori
mya_Mymr Burmese
nld_Latn Dutch
nno_Latn Norwegian Nynorsk
nob_Latn Norwegian Bokmål
npi_Deva Nepali
nqo_Nkoo N'Ko
nus_Latn Nuer
nya_Latn Nyanja
oci_Latn Occitan
ory_Orya Odia
pan_Guru Punjabi
pbt_Arab Southern Pashto
pes_Arab Persian
plt_Latn Malagasy
pol_Latn Polish
por_Latn Portuguese
prs_Arab Dari
ron_Latn Romanian
rus_Cyrl Russian
scn_Latn Sicilian
shn_Mymr Shan
sin_Sinh Sinhala
slk_Latn Slovak
slv_Latn Slovenian
snd_Arab Sindhi
som_Latn Somali
spa_Latn Spanish
srd_Latn Sardinian
srp_Cyrl Serbian
swe_Latn Swedish
swh_Latn Swahili
szl_Latn Silesian
tam_Taml Tamil
taq_Latn Tamasheq
taq_Tfng Tamasheq (Tifinagh script)
tel_Telu Telugu
tgk_Cyrl Tajik
tgl_Latn Tagalog
tha_Thai Thai
tur_Latn Turkish
tzm_Tfng Central Atlas Tamazight
ukr_Cyrl Ukrainian
urd_Arab Urdu
uzn_Latn Uzbek
vec_Latn Venetian
vie_Latn Vietnamese
wol_Latn Wolof
xho_Latn Xhosa
yor_Latn Yoruba
zho_Hans Chinese (simplified)
zho_Hant Chinese (traditional)
zsm_Latn Malay
zul_Latn Zulu
eng English
fra French
deu German
""".splitlines()
)


def name_of(code: str) -> str:
    """`eng_Latn` -> English; a code without a name here -> the code."""
    return NAMES.get(code, code)
