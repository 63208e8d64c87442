"""The method with the larger IR-101 teacher."""

preset = dict(teacher="cvlface_ir101", output="output/ir101_teacher")
