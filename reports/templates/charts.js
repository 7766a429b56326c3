// Figures. plotly is large: it runs after the rest of the page is there (the policy allows it by its hash).
const charts = JSON.parse(at("data-figures").textContent);
for (const [name, chart] of Object.entries(charts)) at(`chart-${name}`).style.height = `${chart.layout.height}px`;
later.push(() => {
  const plotly = document.createElement("script");
  plotly.textContent = at("plotly").textContent;
  document.body.append(plotly);
  for (const [name, chart] of Object.entries(charts))
    Plotly.newPlot(at(`chart-${name}`), chart.data, chart.layout, { displayModeBar: false, responsive: true });
});
