// Sorts tables by a click on a column's head, and opens what is folded before a page is printed.
'use strict';
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    const key = row => {
      const cell = row.cells[column], value = cell.dataset.v;
      return value === undefined ? cell.textContent.trim() : Number(value);
    };
    button.addEventListener('click', () => {
      const rows = [...table.tBodies[0].rows];
      const figures = rows.some(row => typeof key(row) === 'number');
      const was = head.getAttribute('aria-sort');
      const up = was ? was === 'descending' : !figures;
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      rows.sort((a, b) => {
        const x = key(a), y = key(b);
        if (figures && typeof x !== typeof y) return typeof x === 'number' ? -1 : 1;  // nothing comes last
        const order = figures && typeof x === 'number' ? x - y
          : String(x).localeCompare(String(y), undefined, {numeric: true});
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
addEventListener('beforeprint', () => document.querySelectorAll('details').forEach(details => { details.open = true; }));
