// Inputs to try, for artifacts whose template and labels they fit. `label` is the true one.

const EXAM_QUESTIONS = [
  { title: "Sounds certain, is not", text: "What is the best remedy for a brute-force attack?", label: "computing" },
  { title: "Clearly medicine", text: "Which valve lies between the left atrium and the left ventricle?", label: "medicine" },
  { title: "Clearly law", text: "Can a state be sued for the deeds of its soldiers abroad?", label: "law" },
  { title: "Between two fields", text: "Which court hears a dispute about the patent of a vaccine?", label: "law" },
  { title: "Wrong, and missed", text: "Is a contract valid that was signed by a computer program?", label: "law" },
  { title: "No question at all", text: "a quietly moving story, told with wit and great care.", label: null },
];

const REVIEWS = [
  { title: "Mixed", text: "handsome , well played and strangely hollow .", label: "negative" },
  { title: "Clearly good", text: "a quietly moving story , told with wit and great care .", label: "positive" },
  { title: "Clearly bad", text: "dull .", label: "negative" },
  { title: "About the trailer", text: "the trailer is better than the film .", label: "negative" },
  { title: "Faint praise", text: "the best film of the year , if you have seen no other .", label: "negative" },
  {
    title: "No review at all",
    text: "the premises of the treaty were signed in geneva on tuesday by the two ministers .",
    label: null,
  },
];

const QUESTIONS = [
  {
    title: "A riddle of two",
    question: "The trophy did not fit in the suitcase because the _ was too big.",
    choices: ["trophy", "suitcase"],
    right: 0,
  },
  { title: "Nobody can know", question: "Anna told Beth that _ had won the prize.", choices: ["Anna", "Beth"], right: null },
];

// Returns examples that fit: each has a title, the fields of an input, and the true label or null.
export function examplesFor({ fields, labels }) {
  const names = [...fields].sort().join();
  const has = (...words) => words.every((word) => labels.includes(word));
  if (names === "text") {
    const texts = has("computing", "law", "medicine") ? EXAM_QUESTIONS : has("negative", "positive") ? REVIEWS : [];
    return texts.map(({ title, text, label }) => ({ title, fields: { text }, label }));
  }
  if (names === "choices,question") {
    return QUESTIONS.map(({ title, question, choices, right }) => ({
      title,
      fields: { question, choices },
      label: right === null ? null : labels[right],
    }));
  }
  return [];
}
