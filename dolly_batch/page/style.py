"""How reports look: light and dark, wide and narrow. All rules are below `.dolly`, so that a notebook keeps its own."""

from typing import Final

STYLE: Final = """
.dolly { --bg: #ffffff; --card: #f5f6f8; --line: #dfe3e8; --text: #1a1f26; --muted: #5a6572; --accent: #2b66d9;
  --soft: #2b66d922; --bad: #c0362c; --bad-soft: #fdeceb; --warn: #946200; --warn-soft: #fdf3dc; --good: #1f7a3d;
  color-scheme: light; background: var(--bg); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) {
.dolly { --bg: #0f1317; --card: #181e24; --line: #2b333c; --text: #e7ebef; --muted: #9ba7b4; --accent: #6ea3ff;
  --soft: #6ea3ff2b; --bad: #ff8178; --bad-soft: #3a1b1a; --warn: #f0bd5a; --warn-soft: #352911; --good: #6fce8b;
  color-scheme: dark }
}
body.dolly { margin: 0 }
.dolly * { box-sizing: border-box }
.dolly main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 56px }
.dolly h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -.01em }
.dolly h2 { font-size: 15px; margin: 0 0 12px }
.dolly h2 small { font-weight: 400; color: var(--muted); margin-left: 6px }
.dolly p { margin: 0 0 8px }
.dolly code { font: 13px/1.4 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.dolly .muted { color: var(--muted) }
.dolly .head { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center }
.dolly .pill { border-radius: 999px; padding: 1px 11px; font-size: 13px; font-weight: 600; background: var(--soft);
  color: var(--accent) }
.dolly .pill.good { color: var(--good); background: color-mix(in srgb, var(--good) 14%, transparent) }
.dolly .pill.bad { color: var(--bad); background: var(--bad-soft) }
.dolly .chip { border: 1px solid var(--line); border-radius: 6px; padding: 0 7px; font-size: 13px; color: var(--muted) }
.dolly .numbers { display: flex; flex-wrap: wrap; gap: 1px; background: var(--line); border: 1px solid var(--line);
  border-radius: 10px; overflow: hidden; margin: 18px 0 14px }
.dolly .number { background: var(--bg); padding: 11px 14px; flex: 1 1 142px; min-width: max-content }
.dolly .number b { display: block; font-size: 20px; line-height: 1.3; font-weight: 650; white-space: nowrap;
  font-variant-numeric: tabular-nums }
.dolly .number span { color: var(--muted); font-size: 13px }
.dolly .number.bad b { color: var(--bad) }
.dolly .notes { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 14px;
  margin: 0 0 14px }
.dolly .note { border-radius: 10px; padding: 12px 16px; border-left: 4px solid var(--line); background: var(--card) }
.dolly .note.bad { border-color: var(--bad); background: var(--bad-soft) }
.dolly .note.warn { border-color: var(--warn); background: var(--warn-soft) }
.dolly .note.good { border-color: var(--good) }
.dolly .note h3 { margin: 0 0 2px; font-size: 13px; font-weight: 600; color: var(--muted) }
.dolly .note b { font-size: 17px }
.dolly .note p { margin: 2px 0 0 }
.dolly .grid { display: flex; flex-wrap: wrap; gap: 14px }
.dolly section { background: var(--card); border-radius: 10px; padding: 16px 18px; min-width: 0; flex: 1 1 46% }
.dolly section.wide { flex-basis: 100% }
.dolly .bar { display: grid; grid-template-columns: minmax(96px, 30%) 1fr minmax(92px, auto); gap: 10px;
  align-items: center; padding: 2px 0; font-size: 14px }
.dolly .bar .said { text-align: right; font-variant-numeric: tabular-nums; color: var(--muted) }
.dolly .bar .track { height: 12px; border-radius: 3px; background: var(--line) }
.dolly .bar .fill { display: block; height: 100%; border-radius: 3px; background: var(--accent) }
.dolly .fill.bad { background: var(--bad) }
.dolly .fill.warn { background: var(--warn) }
.dolly .fill.good { background: var(--good) }
.dolly .histogram { display: flex; align-items: stretch; gap: 3px; height: 190px }
.dolly .column { flex: 1 1 0; min-width: 0; display: flex; flex-direction: column; text-align: center; font-size: 11px;
  color: var(--muted); font-variant-numeric: tabular-nums }
.dolly .column .track { flex: 1; display: flex; align-items: flex-end; border-bottom: 1px solid var(--line) }
.dolly .column .fill { width: 100%; background: var(--accent); border-radius: 3px 3px 0 0 }
.dolly .column .count { height: 17px; white-space: nowrap; overflow: hidden }
.dolly .column .name { height: 18px; white-space: nowrap; overflow: hidden }
.dolly .plot { position: relative; border-bottom: 1px solid var(--line); border-left: 1px solid var(--line) }
.dolly .plot svg { display: block; width: 100%; height: 190px }
.dolly .plot .top, .dolly .plot .middle { position: absolute; left: 6px; font-size: 12px; color: var(--muted) }
.dolly .plot .top { top: 0 }
.dolly .line { padding-left: 88px }
.dolly .line .top, .dolly .line .middle { left: -92px; width: 84px; text-align: right; line-height: 16px; top: -2px }
.dolly .line .middle { top: calc(50% - 8px) }
.dolly .columns .plot { padding-top: 20px }
.dolly .axis { display: flex; justify-content: space-between; font-size: 12px; color: var(--muted); padding-top: 4px }
.dolly rect.plain { fill: var(--accent); opacity: .75 }
.dolly rect.warn { fill: var(--warn) }
.dolly path.curve { fill: none; stroke: var(--accent); stroke-width: 2; vector-effect: non-scaling-stroke }
.dolly path.area { fill: var(--soft) }
.dolly line.grid { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke }
.dolly .scroll { overflow-x: auto }
.dolly table { border-collapse: collapse; width: 100%; font-size: 14px }
.dolly th { text-align: left; font-weight: 600; color: var(--muted); font-size: 13px }
.dolly th, .dolly td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top }
.dolly tr:last-child td, .dolly tr:last-child th { border-bottom: 0 }
.dolly .figures td, .dolly .figures th { white-space: nowrap }
.dolly .figures td:nth-child(n+2), .dolly .figures th:nth-child(n+2) { text-align: right;
  font-variant-numeric: tabular-nums }
.dolly .figures tr > .left.left { text-align: left }
.dolly .facts th { width: 24%; font-weight: 400 }
.dolly .ids code { display: inline-block; border: 1px solid var(--line); border-radius: 5px; padding: 0 6px;
  margin: 2px 4px 2px 0; background: var(--bg) }
.dolly section + details { margin-top: 18px }
.dolly details { border-top: 1px solid var(--line); padding: 14px 0 }
.dolly summary { cursor: pointer; font-weight: 600 }
.dolly details[open] > summary { margin-bottom: 14px }
.dolly a { color: var(--accent) }
@media (max-width: 760px) {
.dolly main { padding: 18px 14px 40px }
.dolly section { flex-basis: 100% }
.dolly .number { flex-basis: 40% }
.dolly .line { padding-left: 70px }
.dolly .line .top, .dolly .line .middle { left: -74px; width: 68px; font-size: 11px }
.dolly .notes { grid-template-columns: minmax(0, 1fr) }
.dolly .histogram .name { font-size: 9px }
.dolly .bar { grid-template-columns: minmax(84px, 36%) 1fr minmax(70px, auto); gap: 8px; font-size: 13px }
}
"""
