// What a browser cannot draw, such as TIFF, has no preview; it is used all the same.
for (const kind of ['error', 'load']) {
  document.addEventListener(kind, ({ target }) => {
    target.closest?.('.picture-field .image-frame')?.classList.toggle('no-preview', kind === 'error');
  }, true);
}

// On a phone a result lies below the screen: it is brought there when it comes, and so is a refusal.
const results = ['#fundus-view', '#volume-numbers', '#compare-view', '#batch-table'];
const notices = ['fundus', 'volume', 'compare', 'batch'].map((tab) => `#${tab}-notice`);
const filled = new Set();
new MutationObserver((records) => {
  if (!matchMedia('(max-width: 640px)').matches) return;
  for (const name of [...results, ...notices]) {
    const place = document.querySelector(name);
    if (!place || !records.some((record) => place.contains(record.target))) continue;
    const isFilled = !place.querySelector('.empty') && place.innerHTML.replace(/<!--.*?-->/g, '').includes('</');
    if (isFilled && !filled.has(name)) place.scrollIntoView({ block: notices.includes(name) ? 'nearest' : 'start' });
    filled[isFilled ? 'add' : 'delete'](name);
  }
}).observe(document.documentElement, { childList: true, subtree: true });
