// Gradio's pictures have no names. Each example gets that of its file, for screen readers and below it.
new MutationObserver(() => {
  for (const picture of document.querySelectorAll('.picture-field img[alt=""]')) picture.alt = 'The chosen picture';
  for (const picture of document.querySelectorAll('.examples .gallery-item:not([aria-label]) img')) {
    const file = decodeURIComponent(picture.src.split('/').pop());
    const name = file.replace(/\.[a-z]+$/, '').replace(/^[a-z]+_/, '').replaceAll('_', ' ');
    const button = picture.closest('button');
    button.setAttribute('aria-label', `Example: ${name}`);
    button.dataset.name = name;
  }
}).observe(document.documentElement, { childList: true, subtree: true, attributeFilter: ['src'] });
