"""What a notebook puts between its paragraphs: a figure, or a sentence with a number in it."""

import base64
import html
import io

import matplotlib.pyplot as plt
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from lib import paths, plots


def show(fig: Figure, name: str | None, alt: str) -> None:
    """Write figures/<name>.png and show that file, or write none without a name, as for a reader's own figure. Where it
    cannot be written, the figure is shown all the same, and a line says so.

    alt says in words what is to be seen, for those who cannot see it. JupyterLab and nbconvert give a plain image
    output no alternative text, so it is an ``img`` of its own.
    """
    file = io.BytesIO()
    try:
        if name:
            plots.save(fig, name)
            file.write((paths.folder("figures") / f"{name}.png").read_bytes())
    except OSError as error:
        print(error)
    if not file.tell():
        fig.savefig(file)
    content = file.getvalue()
    plt.close(fig)
    width = round(100 * fig.get_figwidth())  # a hundred pixels to the inch, whatever the file has
    png = base64.b64encode(content).decode()
    source = f'src="data:image/png;base64,{png}" style="width:{width}px;max-width:100%;height:auto;background:#fff"'
    image = f'<img alt="{html.escape(alt)}" {source}>'
    display({"text/html": image, "text/plain": alt}, raw=True)


def say(sentence: str, *numbers: object, **named: object) -> None:
    """Show a sentence of Markdown with its numbers, as str.format puts them in: ``say("It is {:.1f} %.", share)``."""
    display(Markdown(sentence.format(*numbers, **named)))
