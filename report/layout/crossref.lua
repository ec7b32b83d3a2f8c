-- Pandoc filter of the parts that notebook.lua read: sections, cross-references, listings, formulas and tables in
-- typst, and a warning for what would be dropped or drawn wrongly.

local KINDS = { fig = true, eq = true, tbl = true, sec = true, lst = true }
local ROOM, CHARACTER = 448, 4.7  -- points: of the text's width, of a character in a table
local labels, strict = {}, false

local function complain(...) pandoc.log.warn("0\t" .. string.format(...)) end

local function typst(text) return pandoc.RawInline("typst", text) end

local function block_of(text) return pandoc.RawBlock("typst", text) end

local function quoted(text) return '"' .. text:gsub("\\", "\\\\"):gsub('"', '\\"'):gsub("%s+", " ") .. '"' end

local function define(element)
  local id = element.identifier
  if labels[id] then
    complain("label %s is defined twice", id)
    if not strict then element.identifier = "" end
  end
  labels[id] = id ~= "" and (element.t == "Header" and pandoc.utils.stringify(element.content) or true)
  return element
end

-- in the report: level 1 is the title, which the metadata holds; Abstract, References and .appendix have their own form
local function sections(doc)
  strict = doc.meta.strict or false
  local blocks, cited = pandoc.Blocks {}, false
  doc:walk { Cite = function(cite)
    for _, one in ipairs(cite.citations) do cited = cited or not KINDS[one.id:match("^(%a+):")] end
  end }
  for _, block in ipairs(doc.blocks) do
    local inside = block.t == "Div" and block.classes:includes("part") and block.content or pandoc.Blocks { block }
    if #blocks > 0 and #inside > 0 and blocks[#blocks].t == inside[1].t and inside[1].t:match("List$") then
      blocks:insert(block_of("#v(0pt)"))  -- the list of another cell begins anew
    end
    if doc.meta.places and block.t == "Div" then  -- for report/pdf.py to ask where a cell begins
      blocks:insert(block_of("#place(context { let at = here().position(); [#metadata((at.page, at.y.pt(), " .. block.attributes.cell .. "))<where:cell>] })"))
    end
    blocks:extend(inside)
  end
  local body, abstract, in_abstract, in_appendix, listed = pandoc.Blocks {}, pandoc.Blocks {}, false, false, false
  for _, block in ipairs(blocks) do
    if block.t ~= "Header" then
      (in_abstract and abstract or body):insert(block)
    else
      in_abstract = strict and block.identifier == "sec:abstract"
      if block.classes:includes("appendix") and not in_appendix then
        in_appendix = true
        body:insert(block_of("#place.flush()\n#show: appendix"))
      end
      if block.identifier == "sec:references" and (strict or cited) then
        body:insert(block_of((strict and "#place.flush()\n" or "") .. '#bibliography("references.bib", title: "References")'))
        listed = true
      elseif not in_abstract then
        body:insert(block)
      end
    end
  end
  if cited and not listed then
    if strict then complain("sources are cited: add the section ## References") end
    body:insert(block_of('#bibliography("references.bib", title: "References")'))
  end
  if #abstract > 0 and abstract[1].t == "BlockQuote" then  -- the answer in one sentence stands above the abstract
    doc.meta.answer = pandoc.MetaBlocks(abstract[1].content)
    abstract:remove(1)
  end
  doc.blocks, doc.meta.abstract = body, #abstract > 0 and pandoc.MetaBlocks(abstract) or nil
  if doc.meta.lifted then
    doc = doc:walk { Header = function(head)
      head.level = math.max(1, head.level - 1)
      return head
    end }
  end
  return doc
end

-- $$...$$ {#eq:x} is a numbered equation; no line ends before a percent or plus-minus sign
local function inlines_of(inlines)
  for i = #inlines, 2, -1 do
    if inlines[i].t == "Str" and inlines[i].text:match("^[%%±]") and inlines[i - 1].t == "Space" then
      inlines[i - 1] = pandoc.Str("\u{a0}")
    end
    local id = inlines[i].t == "Str" and inlines[i].text:match("^{#(eq:[%w_-]+)}")
    local at = id and (inlines[i - 1].t == "Math" and i - 1 or i - 2)
    if id and inlines[at] and inlines[at].t == "Math" then
      local rest = inlines[i].text:gsub("^{#.-}", "")
      local equation = define(pandoc.Span(inlines[at], { id = id }))
      for _ = at, i do inlines:remove(at) end
      for j, inline in ipairs { typst("#numbered["), equation, typst("]"), pandoc.Str(rest) } do
        inlines:insert(at + j - 1, inline)
      end
    end
  end
  return inlines
end

-- ---------------------------------------------------------------- tables

local function rows_of(block)
  local rows = pandoc.List {}
  rows:extend(block.head.rows)
  for _, body in ipairs(block.bodies) do
    rows:extend(body.head)
    rows:extend(body.body)
  end
  rows:extend(block.foot.rows)
  return rows
end

-- the room that each column needs for its longest word, and whether every cell lies in one column
local function widths(block)
  local need, simple = {}, true
  for i = 1, #block.colspecs do need[i] = 1 end
  for _, row in ipairs(rows_of(block)) do
    for i, one in ipairs(row.cells) do
      simple = simple and one.col_span == 1 and one.row_span == 1
      for word in pandoc.utils.stringify(one.contents):gmatch("%S+") do
        need[i] = math.max(need[i] or 1, math.min(utf8.len(word) or #word, 40))
      end
    end
  end
  for i, characters in ipairs(need) do need[i] = characters * CHARACTER + 10 end
  return need, simple
end

local function columns(block, kept)
  local part = block:clone()
  local function pick(list) return kept:map(function(i) return list[i] end) end
  local function shorten(rows)
    for _, row in ipairs(rows) do row.cells = pick(row.cells) end
    return rows
  end
  part.colspecs = pick(block.colspecs)
  part.head.rows = shorten(part.head.rows)
  local bodies = part.bodies
  for _, body in ipairs(bodies) do body.head, body.body = shorten(body.head), shorten(body.body) end
  part.bodies = bodies
  part.foot.rows = shorten(part.foot.rows)
  return part
end

-- a table whose words need more room than there is: smaller, and where that is not enough, a few columns at a time
local function fitted(block)
  local need, simple = widths(block)
  local sum = 0
  for _, width in ipairs(need) do sum = sum + width end
  if sum <= ROOM then return nil end
  local specs = block.colspecs
  for _, spec in ipairs(specs) do spec[2] = nil end
  block.colspecs = specs
  local groups, now, used = pandoc.List {}, pandoc.List {}, 0
  if sum <= ROOM / 0.7 or not simple then
    groups:insert(pandoc.List {})
    for i = 1, #need do groups[1]:insert(i) end
  else
    for i = 1, #need do
      if used + need[i] > ROOM / 0.7 and #now > 1 then
        groups:insert(now)
        now, used = pandoc.List { 1 }, need[1]
      end
      now:insert(i)
      used = used + need[i]
    end
    groups:insert(now)
  end
  local result = pandoc.Blocks { block_of(string.format("#[\n#show table: set text(size: %.3fem)\n#set table(inset: (x: 3pt, y: 3pt))",
    math.max(0.4, math.min(1, ROOM / math.min(sum, simple and ROOM / 0.7 or sum)))) ) }
  for number, kept in ipairs(groups) do
    local part = columns(block, kept)
    if number > 1 then part.caption, part.attr = { long = {} }, pandoc.Attr() end
    result:insert(part)
  end
  result:insert(block_of("]"))
  return result
end

-- the columns are as wide as the dashes below the head say, where notebook.lua has noted them
local function shared(block)
  local specs, widths, sum = block.colspecs, pandoc.List {}, 0
  for width in (block.attributes.dashes or ""):gmatch("%d+") do
    widths:insert(tonumber(width))
    sum = sum + width
  end
  block.attributes.dashes = nil
  if #widths ~= #specs then return block end
  for i, spec in ipairs(specs) do spec[2] = widths[i] / sum end
  block.colspecs = specs
  return block
end

-- a table stays on one page, unless it is longer than that
local function table_of(block)
  define(block)
  local rows = 0
  for _, body in ipairs(block.bodies) do rows = rows + #body.body end
  if strict and (block.attributes.dashes or "") == "" then
    local sum = 0
    for _, width in ipairs((widths(block))) do sum = sum + width end
    if sum > ROOM / 0.7 then complain("a table of %d columns is wider than the page: split it", #block.colspecs) end
  end
  local fit = not strict and fitted(block) or pandoc.Blocks { shared(block) }
  if rows <= 30 then return fit end
  fit:insert(1, block_of("#[\n#show figure.where(kind: table): set figure(placement: none)"
    .. "\n#show figure.where(kind: table): set block(breakable: true, above: 1.5em, below: 1.5em)"))
  fit:insert(block_of("]"))
  return fit
end

-- c++ and "Wolfram Language" are no names of a language to typst, which would print the rest of them
local LANGUAGES = { ["c++"] = "cpp", ["c#"] = "cs", ["f#"] = "fs" }

local function listing(block)
  local language = (block.classes[1] or ""):lower()
  if language:find("[^%w_-]") then
    block.classes = { LANGUAGES[language:match("^%a[+#]+")] or language:match("^[%w_-]+") }
  end
  local caption, styles = block.attributes.caption, block.attributes["terminal-colours"]
  if styles then  -- the colours of a terminal
    local plain = pandoc.CodeBlock(block.text, { class = block.classes[1] or "" })
    return pandoc.Blocks { block_of("#[\n#show raw.line: ansi.with(" .. styles .. ")"), plain, block_of("]") }
  end
  if not caption then return block end
  define(block)
  local head = pandoc.utils.blocks_to_inlines(pandoc.read(caption, "markdown").blocks)
  head:insert(1, typst("#figure(kind: raw, supplement: [Listing], caption: ["))
  head:insert(typst("])["))
  local code = pandoc.CodeBlock(block.text, { class = block.classes[1] or "" })
  local result = pandoc.Blocks { pandoc.Plain(head), code, block_of("] <" .. block.identifier .. ">") }
  local _, lines = block.text:gsub("\n", "")
  if strict and lines < 40 then  -- a listing stays on one page, unless it is longer than that
    result:insert(1, block_of("#[\n#show figure.where(kind: raw): set block(breakable: false)"))
    result:insert(block_of("]"))
  end
  return result
end

-- ---------------------------------------------------------------- what typst has no word for

local function span(element)
  if element.classes:includes("tagged") and element.attributes.tag then
    local content = pandoc.Inlines { typst("#tagged(" .. quoted(element.attributes.tag) .. ")[") }
    content:extend(element.content)
    content:insert(typst("]"))
    return content
  elseif element.classes:includes("drawn-bar") then
    return typst("#progressed(" .. (tonumber(element.attributes.part) or "none") .. ");")
  elseif element.classes:includes("kbd") then
    return pandoc.Inlines { pandoc.Code(pandoc.utils.stringify(element)) }
  elseif element.classes:includes("caption") then
    return element.content
  elseif element.identifier ~= "" and #element.content == 0 then  -- typst would label what stands before an empty anchor
    element.content = { typst("#metadata(none)") }
    return element
  end
end

local function alert(element)
  local title = element.content[1]
  if title and title.t == "Div" and title.classes:includes("title") then
    local content = pandoc.Blocks { block_of("#alert["), pandoc.Para { pandoc.Strong(pandoc.utils.blocks_to_inlines(title.content)) } }
    for i = 2, #element.content do content:insert(element.content[i]) end
    content:insert(block_of("]"))
    return content
  end
end

-- ---------------------------------------------------------------- what a screen reader reads

local WORDS = {
  ["\\in"] = " in ", ["\\ne"] = " is not ", ["\\neq"] = " is not ", ["\\le"] = " at most ", ["\\ge"] = " at least ",
  ["\\sum"] = " sum ", ["\\cdot"] = " times ", ["\\times"] = " times ", ["\\ldots"] = " and so on ", ["\\dots"] = " and so on ",
  ["\\lVert"] = " the norm of ", ["\\rVert"] = " ", ["\\to"] = " to ", ["\\partial"] = " d ", ["\\quad"] = ", ", ["\\qquad"] = ", ",
  ["\\left"] = " ", ["\\right"] = " ", ["\\top"] = " transposed ", ["\\begin"] = " ", ["\\end"] = " ", ["\\approx"] = " about ",
}
local SIGNS = { ["="] = " equals ", ["<"] = " less than ", [">"] = " greater than ", ["+"] = " plus ", ["-"] = " minus ", ["/"] = " over " }

-- the words of a formula in TeX
local function spoken(tex)
  local function inside(group) return spoken(group:sub(2, -2)) end
  tex = tex:gsub("\\%a+{\\operatorname{\u{e011}(%a+)[^}]*}", "{%1 "):gsub("\\[,;:!| ]", " "):gsub("\\([{}%%])", " ")
  tex = tex:gsub("\\[dt]?frac%s*(%b{})%s*(%b{})", function(a, b)
    return " the fraction " .. inside(a) .. " over " .. inside(b) .. ", end of fraction, "
  end)
  tex = tex:gsub("\\(%a+)%s*(%b{})", function(name, body)
    if name == "text" or name == "mathrm" or name == "mathbb" or name == "operatorname" then return " " .. body:sub(2, -2) .. " " end
    if name == "begin" or name == "end" then return " " end
    return " " .. name .. " of " .. inside(body) .. " "
  end)
  tex = tex:gsub("\\(bar)%s+(\\?%a+)", " %2 bar "):gsub("\\(hat)%s+(\\?%a+)", " %2 hat ")
  tex = tex:gsub("_%s*(%b{})", function(body) return " sub " .. inside(body) .. " " end)
  tex = tex:gsub("%^%s*(%b{})", function(body) return " to the power " .. inside(body) .. ", end of power, " end)
  tex = tex:gsub("%^%s*\\top", " transposed "):gsub("_%s*(\\?%w)", " sub %1"):gsub("%^%s*(\\?%w)", " to the power %1 ")
  tex = tex:gsub("[{}&]", " "):gsub("\\\\", ", ")
  tex = tex:gsub("\\%a+", function(name) return WORDS[name] or " " .. name:sub(2) .. " " end)
  tex = tex:gsub("[=<>+%-/]", SIGNS)
  return (tex:gsub("%s+", " "):gsub("^ ", ""):gsub(" $", ""))
end

-- a mark in the first argument is the function's name, and perhaps an option (report/tex.py)
local function carried(code)
  local MARK = '"\u{e011}(%a+)([^"]*)" ?'
  local function call(rest)
    return function(name, option)
      option = option:gsub("\u{e012}", "")
      return name .. "(" .. (option ~= "" and 'option: #"' .. option .. '", ' or "") .. rest
    end
  end
  code = code:gsub("sqrt%(" .. MARK, call("")):gsub("binom%(" .. MARK .. ",", call("#none,")):gsub("binom%(" .. MARK, call(""))
  code = code:gsub('mat%(delim: "%(", ' .. MARK, call("")):gsub("vec%(" .. MARK .. ",", call("#none,")):gsub("vec%(" .. MARK, call("column: #true, "))
  return (code:gsub('closed%(cases%(', "closed(cases(reverse: #true, "))
end

-- pandoc draws a bar of one stroke as one of two; a mark stands in a matrix without brackets (report/formulas.py); in the
-- report every formula has an alternative text
local function formula(math)
  local bar, bare = math.text:find("{vmatrix}", 1, true), math.text:find("\u{e010}", 1, true) or math.text:find("\u{e011}", 1, true)
  local double = math.text:find("{Vmatrix}", 1, true)
  if not bar and not double and not bare and not strict then return nil end
  local code = pandoc.write(pandoc.Pandoc { pandoc.Plain { math } }, "typst"):gsub("%s+$", "")
  if double then code = code:gsub('delim: "||"', 'delim: "\u{2016}"') end
  if bar then code = code:gsub('delim: "||"', 'delim: "|"') end
  code = code:gsub('delim: "%(", "\u{e010}" ?', "delim: #none, "):gsub('vec%("\u{e010}" ?,? ?', "vec(delim: #none, ")
  code = carried(code)
  local body = code:match("^%$(.*)%$$")
  if not strict or not body then return typst(code) end
  return typst(string.format("#math.equation(block: %s, alt: %s, $%s$);",
    math.mathtype == "DisplayMath" and "true" or "false", quoted(spoken(math.text)), body))
end

-- a picture's alternative text, given as its title: ![caption](file "text")
local function described(figure)
  local alt, file, here  -- .here: no float, it stays where it is written
  figure:walk { Image = function(image)
    alt, file, here = image.attributes.alt, image.src, image.classes:includes("here")
  end }
  if not file then return nil end
  if strict and (not alt or alt == pandoc.utils.stringify(figure.caption.long)) then
    complain('figure %s has no alternative text: write it behind the file, ![caption](file "text")', figure.identifier)
  end
  if not alt then return nil end
  local rule = strict and here and "\n#show floating: set figure(placement: none)\n#show floating: set block(above: 1.2em, below: 1.5em)" or ""
  return { block_of("#[#set image(alt: " .. quoted(alt) .. ")" .. rule), figure, block_of("]") }
end

-- real minus signs, quotes and apostrophes, in the report; a hyphen alone is a dash, and Recall@1 no address
local function str(element)
  if not strict then return nil end
  if element.text == "-" then return pandoc.Str("\u{2013}") end
  local text = (" " .. element.text):gsub("([%s%(%[+])%-(%d)", "%1\u{2212}%2"):sub(2)
  text = text:gsub('^([%(%[]*)"', "%1\u{201c}"):gsub('"', "\u{201d}"):gsub("'", "\u{2019}")
  return pandoc.Str(text)
end

local function link(element)
  if strict and element.target:find("^mailto:") then return element.content end
end

-- @eq:a [@paper] is one Cite to pandoc: only its cross-references are replaced
local function reference(cite)
  local result, own = pandoc.Inlines {}, false
  for i, citation in ipairs(cite.citations) do
    local is_label = KINDS[citation.id:match("^(%a+):")]
    if i > 1 and (is_label or own) then result:insert(is_label and pandoc.Str(", ") or pandoc.Space()) end
    if is_label and not strict and type(labels[citation.id]) == "string" then
      result:insert(pandoc.Link(labels[citation.id], "#" .. citation.id))  -- headings have no numbers there
    elseif is_label and labels[citation.id] then
      result:insert(typst("#ref(<" .. citation.id .. ">)"))
    elseif is_label then
      if strict then complain("undefined reference @%s", citation.id) end
      result:insert(pandoc.Str("@" .. citation.id))
    else
      result:insert(pandoc.Cite({ pandoc.Str("@" .. citation.id) }, { citation }))
    end
    own = own or is_label
  end
  return own and result or nil
end

return {
  { Pandoc = sections },
  { Div = alert },
  { Inlines = inlines_of, Header = define, Table = table_of, Figure = define, CodeBlock = listing, Span = span },
  { Str = str, Link = link },
  { Math = formula, Figure = described },
  { Cite = reference },
}
