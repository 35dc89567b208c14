"""What `tiny` knows: small tables of public knowledge, written for this recipe. Nothing here is downloaded."""


def listed(words: str) -> list[str]:
    """The words of a text."""
    return words.split()


CAPITALS = {
    "Argentina": "Buenos Aires",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Brazil": "Brasilia",
    "Bulgaria": "Sofia",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Colombia": "Bogota",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "England": "London",
    "Estonia": "Tallinn",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "India": "New Delhi",
    "Indonesia": "Jakarta",
    "Iran": "Tehran",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Jamaica": "Kingston",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Latvia": "Riga",
    "Lithuania": "Vilnius",
    "Mexico": "Mexico City",
    "Morocco": "Rabat",
    "Nepal": "Kathmandu",
    "New Zealand": "Wellington",
    "Nigeria": "Abuja",
    "Norway": "Oslo",
    "Pakistan": "Islamabad",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Romania": "Bucharest",
    "Russia": "Moscow",
    "Scotland": "Edinburgh",
    "Serbia": "Belgrade",
    "Slovakia": "Bratislava",
    "South Korea": "Seoul",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Switzerland": "Bern",
    "Thailand": "Bangkok",
    "Tunisia": "Tunis",
    "Turkey": "Ankara",
    "Ukraine": "Kyiv",
    "Uruguay": "Montevideo",
    "Venezuela": "Caracas",
    "Vietnam": "Hanoi",
    "Wales": "Cardiff",
}

_OPPOSITE_PAIRS = """
    big small / hot cold / up down / left right / open closed / fast slow / high low / happy sad / old new / day night
    black white / rich poor / strong weak / hard soft / heavy light / long short / loud quiet / clean dirty / full empty
    wet dry / near far / early late / easy difficult / good bad / first last / inside outside / yes no / true false
    deep shallow / wide narrow / thick thin / sweet sour / front back / always never / begin end / win lose / buy sell
    give take / push pull / love hate / above below / summer winter / north south / east west / brave afraid
    cheap expensive / safe dangerous / smooth rough / sharp blunt / tall tiny / alive dead / more less
"""
OPPOSITES = {
    one: other
    for pair in _OPPOSITE_PAIRS.replace("\n", "/").split("/")
    if pair.strip()
    for one, other in (pair.split(), pair.split()[::-1])
}

# Thing as it stands in a sentence -> colour.
COLOURS = {
    "the sky": "blue",
    "the sea": "blue",
    "the sun": "yellow",
    "the moon": "white",
    "the night": "black",
    "the grass": "green",
    "a banana": "yellow",
    "a lemon": "yellow",
    "a tomato": "red",
    "a strawberry": "red",
    "a cherry": "red",
    "a fire engine": "red",
    "a frog": "green",
    "a leaf": "green",
    "a cucumber": "green",
    "an orange": "orange",
    "a carrot": "orange",
    "a pumpkin": "orange",
    "snow": "white",
    "milk": "white",
    "salt": "white",
    "sugar": "white",
    "rice": "white",
    "a swan": "white",
    "coal": "black",
    "a raven": "black",
    "a tyre": "black",
    "chocolate": "brown",
    "coffee": "brown",
    "wood": "brown",
    "a bear": "brown",
    "an elephant": "grey",
    "a mouse": "grey",
    "a flamingo": "pink",
    "a pig": "pink",
    "a plum": "purple",
    "lavender": "purple",
    "blood": "red",
    "gold": "yellow",
    "silver": "grey",
}

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
MONTH_DAYS = dict(zip(MONTHS, (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), strict=True))
LENGTHS = {
    "days in a week": "A week has 7 days.",
    "months in a year": "A year has 12 months.",
    "hours in a day": "A day has 24 hours.",
    "minutes in an hour": "An hour has 60 minutes.",
    "seconds in a minute": "A minute has 60 seconds.",
    "weeks in a year": "A year has 52 weeks.",
    "seasons in a year": "A year has 4 seasons.",
}

NAMES = listed("""
    Ada Alice Amir Anna Ben Bob Carla Chen Clara Dan David Diana Elena Emma Eva Felix Finn George Grace Hannah Henry Ida
    Ivan Jack James Jane John Julia Karl Kate Lara Leo Lily Lucas Lucy Maria Mark Max Maya Mia Mike Mira Nick Nina Noah
    Nora Olga Oscar Otto Paul Peter Rosa Ruth Sam Sara Simon Sofia Tara Tim Tom Vera Victor Yuki Zoe
""")

# Words to spell, to repeat and to tell stories about.
WORDS = listed("""
    apple arm baby bag ball banana basket beach bear bed bell bird blue boat book bottle box boy bread bridge brother
    brush bucket bus butter button cake camera candle car carpet castle cat chair cheese chicken child city clock cloud
    coat coffee corn country cow cup dance dinner doctor dog dollar door dragon dream dress drum duck eagle ear earth
    egg engine evening eye face family farm father feather field finger fire fish floor flower food foot forest fork
    fox friend frog fruit game garden gate ghost girl glass goat gold grass green guitar hair hammer hand hat head
    heart hill honey horse hotel house ice island jacket jam jungle kettle key king kitchen kite knife lake lamp
    leaf lemon letter library lion lock lunch machine magic map market meat milk mirror money monkey moon morning
    mother mountain mouse mouth movie music nail neck needle nest night nose number nurse ocean office oil onion
    orange oven owl paint palace paper park party pen pencil people pepper piano picture pig pillow pilot plane
    planet plant plate pocket poem police pond potato prince purple queen question rabbit radio rain red ribbon rice
    ring river road robot rock roof room rose salt sand sandwich school sea secret shadow sheep ship shirt shoe shop
    silver sister sky sleep smile snake snow soap sock song soup spider spoon spring star station stone storm story
    street sugar summer sun table tail tea teacher tent ticket tiger toast tooth tower town toy train tree truck
    turtle umbrella uncle valley village violin voice wagon wall watch water wave whale wheel wind window winter
    wolf woman wood word world yellow zebra
""")

# Places without a capital in the table above; the model is to say that it does not know.
UNKNOWN_PLACES = listed("""
    Albania Algeria Angola Atlantis Bolivia Botswana Cambodia Cameroon Cyprus Ecuador Ethiopia Fiji Gabon Georgia
    Guatemala Honduras Israel Jordan Kuwait Laos Lebanon Liberia Libya Luxembourg Malta Mars Monaco Mongolia Namibia
    Narnia Oman Panama Paraguay Qatar Rwanda Samoa Senegal Singapore Somalia Sudan Syria Texas Togo Uganda Utopia
    Yemen Zambia Zimbabwe
""")

ANIMALS = listed("""
    cat dog fox owl bear frog duck mouse horse lion wolf rabbit turtle monkey pig goat bird snake sheep tiger robot
    dragon
""")
