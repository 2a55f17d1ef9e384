"""Plots: tables in, matplotlib Axes out. No torch, no global settings, no files except in `save`.

A plot makes axes in this style unless it gets some. `palette` gives colours, by the names which
the table has for splits, heads or conditions. All further keywords (`look`) are settings of the
artists: of lines (of several networks, the thick ones), bars, marks or, in maps, of `imshow`.
Legends may lie outside the axes: `save`, or `bbox_inches="tight"`, keeps them:

    with ih.plots.style():
        ax = ih.plots.plot_strengths(table, plt.subplots(layout="constrained")[1], chance=0)
        ax.figure.savefig("strengths.png", bbox_inches="tight")
"""

import lazy_loader

from ih_interp._contents import with_contents

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__doc__ = with_contents(__doc__, __file__)
