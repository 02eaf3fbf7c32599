"""
The generator: [source](source.py) cuts a module into sections, [names](names.py) finds what an identifier means,
[text](text.py), [maths](maths.py) and [code](code.py) turn each into HTML, [library](library.py) asks the library for
kernels and equations, [build](build.py) puts all together and [serve](serve.py) shows it while you write.
"""
