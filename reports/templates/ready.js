for (const work of later) {
  await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));
  work();
}
document.body.dataset.ready = "yes";
