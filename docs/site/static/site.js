"use strict";
// Boxes that scroll sideways can be scrolled with the keyboard, too, and the landmarks of the page have names.
document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "Pages");
document.querySelector(".toc-drawer")?.setAttribute("aria-label", "This page");
for (const box of document.querySelectorAll("pre, .table-wrapper, p:has(> img)")) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}
