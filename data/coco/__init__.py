"""The 80 object classes of COCO, with the words that captions use for them."""
