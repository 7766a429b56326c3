const charts = JSON.parse(at("data-figures").textContent);
for (const [name, chart] of Object.entries(charts)) {
  at(`chart-${name}`).style.height = `${chart.layout.height}px`; // plotly leaves it open, and print collapses it
  Plotly.newPlot(at(`chart-${name}`), chart.data, chart.layout, { displayModeBar: false, responsive: true });
}
