// What is wider than the page moves in a box of its own (site.css). Such a box gets the class "moves", and "more" while
// a part of it is still to come on the right. It may become wider or narrower later: a formula is typeset, a cell opens.
(() => {
  const boxes = ".wide, a.image-reference, article pre, .table-wrapper, div.cell_output, div.math, .sig";
  const look = box => {
    const rest = box.scrollWidth - box.clientWidth;
    box.classList.toggle("moves", rest > 1);
    box.classList.toggle("more", rest - box.scrollLeft > 1);
  };
  const watch = new ResizeObserver(entries => entries.forEach(({ target }) => look(target)));
  for (const box of document.querySelectorAll(boxes)) {
    watch.observe(box);
    box.addEventListener("scroll", () => look(box), { passive: true });
  }
})();
